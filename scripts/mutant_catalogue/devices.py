"""Bugs that a CPU forgives and a GPU does not: generators, operations without a fixed order, waits, memory."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

DEVICES = "devices/test_devices.py"
TRAINS = f"{DEVICES}::test_every_module_trains_on_the_device"
LOOKS = f"{DEVICES}::test_samples_do_not_depend_on_how_often_the_host_looks"

ON_DEVICES = (
    Row(
        "a run that is right on a CPU fails, waits or runs out of memory on a GPU",
        (
            "every module and command runs on a pretended CUDA device, also under deterministic algorithms, within a "
            "budget of waits, each at a line that gives its reason; a run leaves nothing in memory"
        ),
        (
            Mutant(
                "a new score head is drawn on the default device by a generator of the CPU",
                "models/reward_model.py",
                ', dtype=torch.float32, device="cpu")',
                ", dtype=torch.float32)",
                (f"{TRAINS}[new_score_head]",),
            ),
            Mutant(
                "sampling sums floats, which deterministic algorithms refuse on a GPU",
                "rollout/native.py",
                "    if not x.is_cuda:\n",
                "    if True:\n",
                (f"{TRAINS}[ppo_deterministic]",),
            ),
            Mutant(
                "the host waits for every token",
                "rollout/native.py",
                'self.look_every = 1 if self.device.type == "cpu" else LOOK_EVERY',
                "self.look_every = 1",
                (f"{LOOKS}[llama]",),
            ),
            Mutant(
                "a run's networks stay in memory while the next stage loads its own",
                "commands/train.py",
                "    release_memory()\n",
                "",
                ("commands/test_release.py::test_a_stage_leaves_no_network_and_no_optimiser[dpo-overrides0]",),
            ),
        ),
    ),
)
