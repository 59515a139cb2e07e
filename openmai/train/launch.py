"""`train launch`: the file that starts a training on many machines, checked against its layout first."""

from __future__ import annotations

from openmai.base.config import read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file
from openmai.base.launch import Launch, kubernetes_manifest, slurm_script, torchrun_script
from openmai.base.progress import say
from openmai.model.config import load_preset
from openmai.train.config import DryRunConfig, LaunchConfig
from openmai.train.dial import turn

MAKERS = {"torchrun": torchrun_script, "slurm": slurm_script, "kubernetes": kubernetes_manifest}


def launch(config: LaunchConfig) -> None:
    """Print or write the launch file; raise OpenmaiError if the recipe's layout does not fit the machines."""
    if config.out is None and not config.print:
        raise OpenmaiError("openmai train launch: say where to: --print, or --out=FILE")
    processes = config.nodes * config.gpus
    recipe = validate(DryRunConfig, {**read_yaml(config.recipe), "processes": processes}, str(config.recipe))
    chosen, _ = turn(recipe, recipe.vocab_size, processes)
    assert chosen.batch_rows
    assert chosen.micro_rows
    layout = recipe.layout.resolve(processes, chosen.batch_rows, chosen.micro_rows)
    if recipe.preset:
        layout.check_model(recipe.architecture(load_preset(recipe.preset).vocab_size), recipe.context)
    command = ("-m", "openmai", "train", "pretrain", "--config", str(config.recipe), *config.arguments)
    text = MAKERS[config.to](
        Launch(config.name, config.nodes, config.gpus, command, restarts=config.restarts, hours=config.hours, image=config.image)
    )
    if config.print:
        print(text, end="")
    if config.out is not None:
        with atomic_file(config.out) as file:
            file.write(text.encode())
        say(f"{config.out}: {processes:,} processes on {config.nodes:,} machines")
