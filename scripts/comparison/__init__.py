"""Code that `benchmark.py` and `measure_roles.py` share: we and TRL, each in a separate process and environment.

rows.py           what is compared, and the aims
inputs.py         random Llamas and the files that a row reads
environments.py   a virtual environment per version of TRL
workers.py        the driver's side of a worker process
answering.py      a worker's side: one JSON request per line, one answer per line
ours.py, peer.py  the workers: build a run, then repeat it on request
memory.py         resident memory of a process, bytes of parameters
floors.py         the least arithmetic that a row needs, and the machine's speeds
table.py          the table of docs/performance.md
"""
