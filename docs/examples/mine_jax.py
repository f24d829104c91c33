from my_jax_layers import column_linear, row_linear

from conformance.adapters.jax_adapter import JaxAdapter, Layer


class Mine(JaxAdapter):
    contract = 1
    layers = ("column", "row")
    flags = ("bias",)

    def build(self, layer: Layer):
        linear = column_linear if layer.kind == "column" else row_linear
        return lambda parameters, x: linear(x, parameters["weight"], parameters.get("bias"), layer.mesh)
