"""Files, functions and signatures stay small enough to be read at once; the script that counts them counts right."""

from structure import HERE, arrows, floor_of, functions, lengths


def test_no_file_function_or_signature_is_long():
    assert [x for x in lengths(HERE) if x[0] > 500] == []
    assert [x for x in functions(HERE) if x[0] > 70] == []
    assert [x for x in functions(HERE) if x[1] > 8 or x[2] > 12] == []


def test_no_arrow_goes_both_ways():
    between = arrows(HERE)
    assert not {(a, b) for a, b in between if (b, a) in between}


def test_the_script_counts_a_small_package_right(tmp_path):
    package = tmp_path / "connector"
    (package / "wing").mkdir(parents=True)
    (package / "__init__.py").write_text("from connector.wing.upper import f\n")
    (package / "ground.py").write_text("def g(a, b, *, c):\n    return a\n")
    (package / "wing" / "__init__.py").write_text("")
    (package / "wing" / "inner.py").write_text("from connector import ground\n")
    (package / "wing" / "upper.py").write_text("import connector.wing.inner\n\n\ndef f():\n    pass\n")
    (package / "top.py").write_text("def late():\n    from connector.wing.upper import f\n")
    assert arrows(package) == {("wing", "ground"), ("top", "wing")}
    assert floor_of("top", {"wing": {"ground"}, "top": {"wing"}}) == 2
    assert max(functions(package)) == (2, 2, 3, "ground.py:1 g")
    assert max(lengths(package)) == (5, "wing/upper.py")
