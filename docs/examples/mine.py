from my_layers import MyColumnLinear, MyRowLinear

from conformance.adapters.pytorch import Layer, TorchAdapter
from spec import Case

KEEPS_GROUP = "keeps its ProcessGroup, which cannot be copied"


class Mine(TorchAdapter):
    contract = 1
    layers = ("column", "row")
    flags = ("bias",)
    procedures_declined = {"deepcopy": KEEPS_GROUP, "pickle": KEEPS_GROUP}
    accepts = {"master-integer": "load_full casts to the layer's dtype"}

    def build(self, layer: Layer, group):
        cls = MyColumnLinear if layer.kind == "column" else MyRowLinear
        bias = layer.bias is not None
        module = cls(layer.in_features, layer.out_features, bias, group, layer.device, layer.dtype)
        module.load_full(layer.weight, layer.bias)
        return module

    def unsupported(self, case: Case) -> str:
        return "is not used under autocast" if case.autocast else ""
