"""Functions of a CPU that are replaced, because MKL's differ between processors: they are right in every form."""

import pytest
import torch

from pipeline.base.portable import FUNCTIONS, root, use_portable_functions

EXACT = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.fixture(autouse=True)
def replaced():
    use_portable_functions()


def numbers(dtype):
    return torch.linspace(0.01, 0.99, 960, dtype=dtype)  # any third of them fills vectors of 8, as all do


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_is_right_in_all_of_its_forms(name, dtype):
    values = numbers(dtype)
    function = getattr(torch, name)
    found = function(values)
    assert found.dtype == dtype
    # In float32 against float64; in float64 against its inverse.
    inverses = {"sqrt": torch.square, "asin": torch.sin, "acos": torch.cos, "atan": torch.tan, "tan": torch.atan}
    inverses |= {"log": torch.exp, "log10": lambda values: 10**values}
    assert torch.allclose(inverses[name](found.double()), values.double(), rtol=20 * EXACT[dtype], atol=0)
    assert torch.equal(getattr(values.clone(), f"{name}_")(), found)
    assert torch.equal(function(values, out=torch.empty(0, dtype=dtype)), found)
    assert torch.equal(function(values[::3]), found[::3])
    assert torch.equal(function(values[None].expand(2, -1))[1], found)
    assert function(values[0]).shape == () and function(values[:0]).shape == (0,)
    assert torch.autograd.gradcheck(function, values[::96].double().requires_grad_())


def test_roots_are_the_nearest_numbers_also_in_powers_and_distances():
    values = numbers(torch.float32)
    exact = values.double().sqrt().float()
    assert torch.equal(values.sqrt(), exact) and torch.equal(root(values), exact)
    assert torch.equal(values**0.5, exact) and torch.equal(values.clone().pow_(0.5), exact)
    rows = values.view(30, 32)
    squares = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist") ** 2
    assert torch.equal(squares.double().sqrt().float(), squares.sqrt())
    assert torch.equal(values**2, values * values)


def test_other_numbers_are_left_to_pytorch():
    assert torch.arange(5).sqrt().dtype == torch.float32
    assert torch.tensor([4.0]).bfloat16().sqrt().dtype == torch.bfloat16
    assert torch.tensor([-1 + 0j]).sqrt().imag == 1
    special = torch.tensor([-1.0, 0.0, torch.inf, torch.nan])
    assert str(special.sqrt().tolist()) == "[nan, 0.0, inf, nan]"
    assert str(special.double().log().tolist()) == "[nan, -inf, inf, nan]"
    assert str(torch.tensor([2.0, -2.0]).acos().tolist()) == "[nan, nan]"
