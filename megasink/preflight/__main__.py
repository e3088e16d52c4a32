"""`python -m megasink.preflight`: one rank."""

from megasink.preflight import main

main()
