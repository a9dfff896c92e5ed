# Every target is one script; `make help` lists them. `run`, `test` and `check` set up first, which costs nothing when
# nothing changed.
.PHONY: help run setup test mutants test-long check bench soak protos constraints clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

run: setup       ## start the platform with a starter model and show an answer (Ctrl-C stops it)
	@scripts/run

setup:           ## make .venv from constraints.txt; a no-op when nothing changed
	@scripts/setup

test: setup      ## the suite that CI runs
	@scripts/test

mutants: setup   ## seeded bugs, each of which a test must notice (CI runs them too)
	@scripts/test --mutants

test-long: setup ## the long forms: soak, drills (up to an hour)
	@scripts/test --long

check: setup     ## format, lint, types, walls, protos (needs node for buf)
	@scripts/check

bench: setup     ## measure; BENCH=--full for the figures of docs/benchmarks.md
	@scripts/bench $(BENCH)

soak: setup      ## the long soak of lifecycle; SOAK=--help for its options
	@scripts/soak $(SOAK)

protos: setup    ## generate libs/modelmora/*/v1 from protos/
	@scripts/protos

constraints:     ## resolve every dependency anew into constraints.txt
	@scripts/constraints

clean:           ## remove what setup and check made
	rm -rf .venv .tools node_modules .mypy_cache .ruff_cache .hypothesis
