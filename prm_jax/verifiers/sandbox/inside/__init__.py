"""What runs inside the sandbox: standard library only, sent to a bare interpreter as text.

Nothing here may import another part of prm_jax: the interpreter that runs model-written programs cannot see it.
"""
