from rlcm.cli.commands import main

main(prog_name="rlcm")
