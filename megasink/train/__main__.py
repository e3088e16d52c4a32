"""`python -m megasink.train`: one rank. `deepspeed --module megasink.train` starts several."""

from megasink.train.entry import main

main()
