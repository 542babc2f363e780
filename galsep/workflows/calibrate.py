"""placeholder"""
def calibrate(model, data, reporter): return {}
