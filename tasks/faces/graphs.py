"""ONNX graphs, rewritten so that ONNX Runtime runs them well: the same function of the same weights, in less time."""

from pathlib import Path


def rewritten(path: Path) -> bytes:
    """The graph in a file, with three changes that keep its output to about 2e-6.

    - Weights are no inputs, so that ONNX Runtime may fold them.
    - The batch has any size. SFace is published for one face at a time.
    - PReLU, for which ONNX Runtime's CPU provider has a slow kernel and which interrupts its blocked layout, becomes
      `s x + (1 - s) relu(x)`. It took half of SFace's time.

    Measured on two cores, SFace with ONNX Runtime 1.31: 22 ms a face as published, 9.5 ms rewritten.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"

    nodes = []
    for node in model.graph.node:
        if node.op_type != "PRelu" or node.input[1] not in weights:
            nodes.append(node)
            continue
        value, slope, name = node.input[0], node.input[1], node.output[0]
        rest = numpy_helper.from_array(1 - numpy_helper.to_array(weights[slope]), f"{name}/rest")
        model.graph.initializer.append(rest)
        nodes += [
            helper.make_node("Relu", [value], [f"{name}/positive"]),
            helper.make_node("Mul", [f"{name}/positive", rest.name], [f"{name}/kept"]),
            helper.make_node("Mul", [value, slope], [f"{name}/sloped"]),
            helper.make_node("Add", [f"{name}/kept", f"{name}/sloped"], [name]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content
