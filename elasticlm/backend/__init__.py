"""How a level is executed. A backend has a name, a precision, a device, and one method:

hidden(inputs, level): tokenised batch -> hidden states [batch, tokens, dim], without gradients.
"""
