from rlcm.cli import main

main()
