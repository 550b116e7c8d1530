import numpy as np
import numpy.typing as npt

def instruction_sets() -> list[str]: ...

class Encoder:
    def __init__(
        self,
        words: npt.NDArray[np.float32],
        input_weights: npt.NDArray[np.float32],
        recurrent_weights: npt.NDArray[np.float32],
        input_bias: npt.NDArray[np.float32],
        candidate_bias: npt.NDArray[np.float32] | None,
        over_time: bool,
        projection: npt.NDArray[np.float32] | None,
        projection_bias: npt.NDArray[np.float32] | None,
        least_square: float,
        instruction_set: str,
    ) -> None: ...
    def encode(
        self, tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], threads: int
    ) -> npt.NDArray[np.float32]: ...
    @property
    def instruction_set(self) -> str: ...
