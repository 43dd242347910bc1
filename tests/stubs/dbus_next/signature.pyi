from typing import Any

class SignatureTree:
    signature: str

class Variant:
    signature: str
    value: Any
    def __init__(self, signature: str | SignatureTree, value: object) -> None: ...
