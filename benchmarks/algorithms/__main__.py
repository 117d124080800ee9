from benchmarks.algorithms.run import main

if __name__ == "__main__":
    main()
