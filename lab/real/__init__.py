"""A model of pretrained parts on published benchmarks. `python -m lab.real` downloads, converts and verifies the parts
and writes the training data and questions, some 600 MB in `lab/out/real`. It needs
`pip install onnx onnxruntime gguf resvg_py` and npm. No model has been trained from them yet.
"""
