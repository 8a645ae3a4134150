"""`python -m damcli`."""

from damcli.cli import main

if __name__ == "__main__":
    main()
