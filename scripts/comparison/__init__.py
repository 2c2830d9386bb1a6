"""What `benchmark.py` and `measure_roles.py` share: ours and TRL, each in a process and an environment of its own.

rows.py           what is compared, and the aims
inputs.py         random Llamas and the files that a row reads
environments.py   a virtual environment a version of TRL
workers.py        the driver's side of a worker process
answering.py      a worker's side: one JSON request a line, one answer a line
ours.py, peer.py  the workers: build a run, then repeat it on request
memory.py         resident memory of a process, bytes of parameters
floors.py         the arithmetic that a row needs at least, and the machine's speeds
table.py          the table of docs/performance.md
"""
