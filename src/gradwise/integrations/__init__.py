"""Other libraries' trainers, one small file each, imported only when they are used."""
