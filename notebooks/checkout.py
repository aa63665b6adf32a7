"""`import checkout` as the first line of a notebook: it then runs at the root of the checkout that
it lies in, wherever Jupyter was started, with the repository's packages at hand.
"""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))
# Processes that a notebook starts find the packages too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# Jupyter asks for colours, and so other processes would draw their progress bars into the cell.
os.environ.pop("FORCE_COLOR", None)
# Libraries that draw progress bars miss Jupyter's widgets, which nothing here needs.
warnings.filterwarnings("ignore", message="IProgress not found")
