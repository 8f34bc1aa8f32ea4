import sys
from pathlib import Path

# Worker processes import the reward functions of these tests by name.
sys.path.insert(0, str(Path(__file__).parent))
