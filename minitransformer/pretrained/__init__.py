"""Model folders in the layouts of the Hugging Face library: what is written, and what is read.

The layout of an architecture is a module, such as ``gpt2``, with

- ``MODEL_TYPE``, which tells its ``config.json`` from others;
- ``to_hugging_face(config)`` and ``from_hugging_face(table, path)``, between our configuration and that file;
- ``tensors(config)``: path of the parameter, name in the file and shape of every tensor that a file holds;
- ``constant(path, shape)``: the tensor of a path that is no parameter of the model;
- ``PREFIX``, which is written before every name, and ``TIED``, ``{copy: name}`` of tied tensors;
- ``is_buffer(name)``, True for a tensor of others' files that is ignored;
- ``check_depth(names, config, path)``, which refuses a file of another depth.
"""
