from rlcm.cli import main

main(prog_name="rlcm")
