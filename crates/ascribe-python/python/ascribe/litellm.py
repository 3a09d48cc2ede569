"""The LiteLLM callback, which lives in ``integrations/litellm`` of the repository: put that folder on ``PYTHONPATH``, or copy its
one file beside your proxy's configuration. Needs litellm and httpx.

::

    import litellm
    from ascribe.litellm import AscribeCallback
    litellm.callbacks = [AscribeCallback("http://127.0.0.1:8080", receipts="receipts.jsonl")]
"""

try:
    from ascribe_callback import AscribeCallback
except ImportError as error:
    raise ImportError(
        f"{error}; expected ascribe_callback.py of integrations/litellm on the path, and litellm and httpx installed"
    ) from error

__all__ = ["AscribeCallback"]
