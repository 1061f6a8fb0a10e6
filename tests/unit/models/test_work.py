from tiny import load, write_model

from forklight.models.work import Shape, Work


def test_work_adds_up():
    one, two = Work(1, 2, 3, 4, 5, 6, 7), Work(1, 1, 1, 1, 1, 1, 1)
    assert one + two == Work(2, 3, 4, 5, 6, 7, 8)
    assert one + two - two == one


def test_operations_are_those_of_the_products(tmp_path):
    policy = load(write_model(tmp_path))  # H 16, two heads of 8 and one of keys, MLP 24, two layers, V 50
    per_layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24
    assert policy.shape == Shape(per_token=2 * per_layer, per_pair=2 * 2 * 2 * 8, per_head_product=50 * 16)
    layers, head = policy.shape.flops(Work(row_tokens=10, pairs=3, head_products=5), backward=False)
    assert layers == 2 * (10 * 2 * per_layer + 3 * 64)
    assert head == 2 * 5 * 800
    assert policy.shape.flops(Work(row_tokens=10, pairs=3), backward=True)[0] == 3 * layers
