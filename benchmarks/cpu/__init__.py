"""bertfast beside the other CPU engines: stock PyTorch, OpenVINO and ONNX Runtime, each in a process of its own."""
