"""The paper's benchmarks. `ivmix bench --help` lists the commands; docs/benchmarks.md explains the figures."""
