"""python -m slideconvert"""

from .cli import main

main()
