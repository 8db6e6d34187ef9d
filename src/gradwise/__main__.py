"""`python -m gradwise`: the command line where no script is installed."""

from gradwise.cli import main

if __name__ == "__main__":
    main()
