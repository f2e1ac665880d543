import sys
from pathlib import Path

# Random programs and brute force are shared by several tests of the engines.
sys.path.insert(0, str(Path(__file__).parent))
