from typing import Literal
from avalanche.logging import BaseLogger
WandBMode = Literal["online", "offline", "disabled"]
class WandBLogger(BaseLogger):
    def __init__(self, *a): super().__init__()
    def finish(self, *a): pass
