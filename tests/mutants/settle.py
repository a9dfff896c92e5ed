"""A pytest plugin for mutant runs: the same examples every time, and no shrinking, for one counterexample is enough."""

from hypothesis import Phase, settings

settings.register_profile(
    "mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, deadline=None, database=None
)
settings.load_profile("mutants")
