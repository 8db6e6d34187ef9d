"""What runs come to: tables, curves and verdicts, from run directories alone."""
