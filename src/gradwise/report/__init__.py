"""The results of runs: tables, curves and verdicts, from run directories alone."""
