"""Every use of private or undocumented API of other libraries, one named function (or class) each.

    torch           versions of tensors, fused lists of tensors, event files, torchrun's store, running out of memory
    lightning       signals, values of a validation, when ModelCheckpoint and EarlyStopping compare, counts of batches
    jsonargparse    types of options, short names, defaults of a replaced class, names that may be imported
    loops           the loops of `fit`

Each docstring ends with the version that was read, and has a test of its own in tests/test_upstream.py, which fails
where an upgrade takes the thing away or changes what it does.  No other module of the package touches a private name
of these libraries (tests/test_layering.py).  Heavy imports are inside the
functions, but for those of loops.
"""
