"""Drives the LiteLLM callback and the OpenAI proxy with the real packages against a real Ascribe server.

    python check.py http://127.0.0.1:PORT REPOSITORY WORK_FOLDER [PYTHON_WITH_VLLM]
"""

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its table of prices ships with it; nothing is asked of anybody
base, root, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, str(root / "integrations/litellm"))

import httpx  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
from ascribe_callback import AscribeCallback  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: E402
from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: E402

import upstream  # noqa: E402

litellm.telemetry = False
MASTER = f"sk-{secrets.token_hex(32)}"  # LiteLLM's proxy starts with nothing less
passed = failed = 0
processes = []


def check(what, holds, found=None):
    global passed, failed
    if holds:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {what}: {str(found)[:400]}")


def wait(what, ready, seconds=30):
    """Waits until `ready()` is true; returns whether it became so."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ready():
            return True
        time.sleep(0.05)
    print(f"waited in vain for {what}")
    return False


server = httpx.Client(base_url=base, timeout=60)
examples = server.get("/v1/examples").json()["examples"]
english = next(e for e in examples if e["language"] == "en")
chinese = next(e for e in examples if e["language"] == "zh")
known = {e["prompt"]: e["completion"] for e in examples}
up = upstream.start(known)
keys = {k["id"]: load_pem_public_key(k["pem"].encode()) for k in server.get("/v1/keys").json()["keys"]}


def holds(receipt_id, prompt, completion):
    """Whether the receipt is kept, signed by the server, and names the shares that the same question gets."""
    answer = server.get(f"/v1/receipts/{receipt_id}")
    if answer.status_code != 200:
        return f"no receipt: {answer.status_code}"
    signed = answer.json()["receipt"]
    words = json.dumps(signed["receipt"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    key = keys[signed["signer"]]
    assert isinstance(key, Ed25519PublicKey)
    key.verify(base64.b64decode(signed["signature"]), words)
    same = server.post("/v1/attributions", json={"prompt": prompt, "completion": completion, "k": 0}).json()
    if signed["receipt"]["requestId"] != receipt_id:
        return "another request"
    total = int(signed["receipt"]["weightTotal"])
    weights = {s["dataset"]: int(s["weight"]) / total for s in signed["receipt"]["shares"]}
    due = {s["dataset_id"]: s["share"] * same["coverage"] for s in same["shares"]} if same["verdict"] == "payable" else {}
    # Both ways: a dataset too many is as wrong as one too few. A weight below one part of 10¹² is left out of a receipt.
    wrong = [d for d in due.keys() | weights.keys() if abs(due.get(d, 0.0) - weights.get(d, 0.0)) > 1e-9]
    return f"other shares: {wrong}" if wrong else None


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- the callback in the SDK
def call(prompt, **more):
    chat = [{"role": "user", "content": prompt}]
    return {"model": "openai/echo", "api_base": f"{up}/v1", "api_key": "none", "messages": chat, **more}


def use(*callbacks):
    """LiteLLM keeps copies of its callbacks in lists of its own; a program sets them once, a suite must clear them."""
    litellm.logging_callback_manager._reset_all_callbacks()
    litellm.callbacks = list(callbacks)


async def sdk():
    kept = work / "sdk.jsonl"
    use(AscribeCallback(base, receipts=kept))
    for place, example in enumerate((english, chinese)):
        answer = await litellm.acompletion(**call(example["prompt"]))
        check("the words are untouched", answer.choices[0].message.content == example["completion"], answer)
        await asyncio.to_thread(wait, "a receipt", lambda n=place: len(lines(kept)) > n)
        line = lines(kept)[-1]
        check("the line names response and receipt", line["response"] == answer.id and line.get("receipt"), line)
        wrong = holds(line["receipt"], example["prompt"], example["completion"])
        check("the receipt holds and names the right shares", wrong is None, wrong)
        check("the line has the verdict", line["verdict"] in ("payable", "too noisy to pay") and 0 <= line["coverage"] <= 1, line)
    streamed = ""
    async for chunk in await litellm.acompletion(**call(chinese["prompt"], stream=True)):
        streamed += chunk.choices[0].delta.content or ""
    check("a stream's words are untouched", streamed == chinese["completion"], streamed)
    await asyncio.to_thread(wait, "a stream's receipt", lambda: len(lines(kept)) > 2)
    wrong = holds(lines(kept)[-1]["receipt"], chinese["prompt"], streamed)
    check("a stream has one receipt, over all of its words", wrong is None and len(lines(kept)) == 3, (wrong, lines(kept)))
    await litellm.acompletion(**call("tool"))
    text = await litellm.atext_completion(model="text-completion-openai/echo", api_base=f"{up}/v1", api_key="none", prompt=english["prompt"])
    check("a text completion's words are untouched", text.choices[0].text == english["completion"], text)
    await asyncio.to_thread(wait, "a text completion's receipt", lambda: len(lines(kept)) > 3)
    await asyncio.sleep(1)
    found = lines(kept)
    check("no response is settled twice, a tool call not at all", len(found) == 4 and len({l["receipt"] for l in found}) == 4, found)
    many = 12
    await asyncio.gather(*(litellm.acompletion(**call(examples[i % len(examples)]["prompt"])) for i in range(many)))
    await asyncio.to_thread(wait, "many receipts", lambda: len(lines(kept)) >= 4 + many, 90)
    found = [l.get("receipt") for l in lines(kept)]
    check("many at once have a receipt each", len(found) == 4 + many and len(set(found)) == 4 + many and None not in found, found)
    lost = work / "lost.jsonl"
    use(AscribeCallback("http://127.0.0.1:9", receipts=lost))
    answer = await litellm.acompletion(**call(english["prompt"]))
    check("without a server the words still come", answer.choices[0].message.content == english["completion"])
    await asyncio.to_thread(wait, "the error's line", lambda: lines(lost))
    check("and the gap is written down", "ConnectError" in lines(lost)[0].get("error", ""), lines(lost))
    refused = work / "refused.jsonl"
    use(AscribeCallback(base, receipts=refused, method="no-such-method"))
    await litellm.acompletion(**call(english["prompt"]))
    await asyncio.to_thread(wait, "the refusal's line", lambda: lines(refused))
    check("what the server refuses is written down in its words", "no-such-method" in lines(refused)[0].get("error", ""), lines(refused))
    await asyncio.to_thread(liars)


def liars():
    """Servers that say something else than the contract: a line with an error, in time, never a receipt."""
    good = {"id": "r1", "verdict": "payable", "coverage": 0.5, "receipt": {}}
    lies = {
        "a list": json.dumps([good]).encode(),
        "no JSON": b"<html>",
        "a number as id": json.dumps({**good, "id": 7}).encode(),
        "no coverage": b'{"id": "r1", "verdict": "payable"}',
        "nesting without end": b"[" * 200_000,
        "bytes without end": None,
        "a byte now and then": b" " * 200,
    }
    for name, body in lies.items():
        kept = work / "lies.jsonl"
        kept.unlink(missing_ok=True)
        callback = AscribeCallback(liar(body, slow="now and then" in name), receipts=kept, timeout_s=1.0)
        begin = time.monotonic()
        callback.settle([{"role": "user", "content": "a"}], litellm.ModelResponse(choices=[{"message": {"content": "b"}}]))
        spent, found = time.monotonic() - begin, lines(kept)
        check(f"{name} is written down as an error", len(found) == 1 and found[0].get("error") and not found[0].get("receipt"), found)
        check(f"{name} holds nobody", spent < 5, spent)


def liar(body, slow):
    """Answers every request with these bytes: at once, or one in 0.2 s; none are bytes without end."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Lies(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            try:
                while body is None:
                    self.wfile.write(bytes(1 << 20))
                for piece in [body[i : i + 1] for i in range(len(body))] if slow else [body]:
                    self.wfile.write(piece)
                    time.sleep(0.2 if slow else 0)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lies)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


asyncio.run(sdk())
sync = work / "sync.jsonl"
use(AscribeCallback(base, receipts=sync))
litellm.completion(**call(english["prompt"]))
wait("a receipt of the blocking call", lambda: lines(sync))
time.sleep(1)
check("the blocking call has its receipt, once", len(lines(sync)) == 1 and lines(sync)[0].get("receipt"), lines(sync))
use()
try:
    AscribeCallback(base, when="never")
    check("a moment that is none is refused", False)
except ValueError:
    check("a moment that is none is refused", True)


# --- the callback in LiteLLM's proxy
def proxy(name, env):
    config = work / f"{name}.yaml"
    config.write_text(json.dumps({  # JSON is YAML
        "model_list": [{"model_name": "echo", "litellm_params": {"model": "openai/echo", "api_base": f"{up}/v1", "api_key": "none"}}],
        "litellm_settings": {"callbacks": ["ascribe_callback.handler"], "telemetry": False},
    }))
    (work / "ascribe_callback.py").write_bytes((root / "integrations/litellm/ascribe_callback.py").read_bytes())
    port = free_port()
    log = (work / f"{name}.log").open("w")
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    processes.append(subprocess.Popen(command, cwd=work, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(work), "LITELLM_MASTER_KEY": MASTER, **env}))
    url = f"http://127.0.0.1:{port}"

    def alive():
        try:
            return httpx.get(f"{url}/health/liveliness").status_code == 200
        except httpx.HTTPError:
            return False

    return url if wait("LiteLLM's proxy", alive, 120) else None


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=MASTER, max_retries=0, timeout=60)


kept = work / "proxy.jsonl"
url = proxy("before", {"ASCRIBE_URL": base, "ASCRIBE_RECEIPTS": str(kept), "ASCRIBE_WHEN": "before"})
check("LiteLLM's proxy starts with the callback", url is not None, (work / "before.log").read_text()[-400:])
if url:
    ask = client(url).chat.completions
    raw = ask.with_raw_response.create(model="echo", messages=[{"role": "user", "content": english["prompt"]}])
    check("the words are untouched by the proxy", raw.parse().choices[0].message.content == english["completion"])
    receipt = raw.headers.get("x-ascribe-receipt")
    wrong = holds(receipt, english["prompt"], english["completion"]) if receipt else "no header"
    check("the caller gets the id of a receipt that holds", wrong is None, (wrong, dict(raw.headers)))
    check("it is the one that is kept", [l["receipt"] for l in lines(kept)] == [receipt], lines(kept))
    words = "".join(c.choices[0].delta.content or "" for c in ask.create(model="echo", messages=[{"role": "user", "content": chinese["prompt"]}], stream=True) if c.choices)
    check("a stream's words are untouched by the proxy", words == chinese["completion"], words)
    wait("the stream's receipt", lambda: len(lines(kept)) > 1)
    time.sleep(1)
    wrong = holds(lines(kept)[-1].get("receipt"), chinese["prompt"], words)
    check("a stream through the proxy has one receipt", wrong is None and len(lines(kept)) == 2, (wrong, lines(kept)))


# --- the OpenAI proxy
def example_proxy(*more, before=up):
    command = [sys.executable, str(root / "integrations/openai-proxy/proxy.py"), "--upstream", before, "--listen", "127.0.0.1:0", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(work / "openai-proxy.log").open("a"), text=True)
    processes.append(process)
    return "http://" + json.loads(process.stdout.readline())["listen"]


ask = client(example_proxy("--ascribe", base))
check("what is not traced passes through", [m.id for m in ask.models.list()] == ["echo"])
done = ask.completions.create(model="echo", prompt=english["prompt"])
check("a completion's words are untouched", done.choices[0].text == english["completion"], done)
wrong = holds(done.ascribe["receipt"], english["prompt"], english["completion"])
check("its receipt holds", wrong is None, wrong)
shares = done.ascribe["shares"]
check("its shares have owners and intervals", abs(sum(s["share"] for s in shares) - 1) < 1e-6 and all(s["low"] <= s["share"] <= s["high"] and s["owner"] for s in shares), shares)
raw = ask.chat.completions.with_raw_response.create(model="echo", messages=[{"role": "user", "content": chinese["prompt"]}])
check("a chat's receipt stands in the header too", raw.headers.get("x-ascribe-receipt") == raw.parse().ascribe["receipt"], dict(raw.headers))
words, last = "", None
for chunk in ask.chat.completions.create(model="echo", messages=[{"role": "user", "content": chinese["prompt"]}], stream=True):
    words += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    last = chunk
wrong = holds(last.ascribe["receipt"], chinese["prompt"], words)
check("a stream ends with its receipt", words == chinese["completion"] and wrong is None, (words, wrong))
try:
    ask.completions.create(model="echo", prompt="fail")
    check("an upstream's refusal passes through", False)
except openai.RateLimitError as error:
    check("an upstream's refusal passes through", "slow down" in str(error), error)
done = client(example_proxy("--ascribe", "http://127.0.0.1:9")).completions.create(model="echo", prompt=english["prompt"])
check("without a server the words still come, with the reason", done.choices[0].text == english["completion"] and "Refused" in done.ascribe["error"], done)
strict = client(example_proxy("--ascribe", "http://127.0.0.1:9", "--strict"))
try:
    strict.completions.create(model="echo", prompt=english["prompt"])
    check("strict refuses words without a receipt", False)
except openai.APIStatusError as error:
    check("strict refuses words without a receipt", error.status_code == 502 and "no receipt" in str(error), error)



# --- the OpenAI proxy and the callback in front of vLLM's own HTTP layer
def vllm_upstream(python):
    log = (work / "vllm.log").open("w")
    command = [python, str(Path(__file__).with_name("vllm_upstream.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    processes.append(process)
    process.stdin.write(json.dumps(known))
    process.stdin.close()
    return json.loads(process.stdout.readline() or "{}")  # importing vLLM takes its time


def before_vllm(url):
    ask = client(example_proxy("--ascribe", base, before=url))
    for example in (english, chinese):
        done = ask.completions.create(model="echo", prompt=example["prompt"], max_tokens=64)
        wrong = holds(done.ascribe["receipt"], example["prompt"], done.choices[0].text)
        check("vLLM's completion is untouched and has its receipt", done.choices[0].text == example["completion"] and wrong is None, (done, wrong))
        asked = {"model": "echo", "messages": [{"role": "user", "content": example["prompt"]}]}
        raw = ask.chat.completions.with_raw_response.create(**asked)
        done = raw.parse()
        wrong = holds(raw.headers.get("x-ascribe-receipt"), example["prompt"], done.choices[0].message.content)
        check("vLLM's chat is untouched and has its receipt", done.choices[0].message.content == example["completion"] and wrong is None, (done, wrong))
        chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        words = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        wrong = holds(chunks[-1].ascribe["receipt"], example["prompt"], words)
        check("vLLM's stream is untouched and ends with its receipt", words == example["completion"] and wrong is None, (words, wrong))
        check("and keeps vLLM's usage", any(c.usage and c.usage.total_tokens == 3 for c in chunks), chunks[-2:])
    words = "".join(c.choices[0].text for c in ask.completions.create(model="echo", prompt=english["prompt"], stream=True) if c.choices)
    check("vLLM's stream of a completion is untouched", words == english["completion"], words)
    for name, wanted, asked in (
        ("engine", openai.RateLimitError, {"prompt": "fail"}),
        ("check of requests", openai.APIStatusError, {"prompt": "a", "temperature": "hot"}),
    ):
        try:
            ask.completions.create(model="echo", **asked)
            check(f"a refusal by vLLM's {name} passes through", False)
        except wanted as error:
            check(f"a refusal by vLLM's {name} passes through", error.status_code in (400, 422, 429), error)
    kept = work / "vllm.jsonl"
    use(AscribeCallback(base, receipts=kept))
    litellm.completion(**call(chinese["prompt"], model="hosted_vllm/echo", api_base=f"{url}/v1"))
    wait("a receipt of LiteLLM's call to vLLM", lambda: lines(kept))
    wrong = holds(lines(kept)[0].get("receipt"), chinese["prompt"], chinese["completion"])
    check("LiteLLM's own way to vLLM leaves a receipt", wrong is None, (wrong, lines(kept)))
    use()


if len(sys.argv) > 4:
    found = vllm_upstream(sys.argv[4])
    check("vLLM's HTTP layer starts", "url" in found, (work / "vllm.log").read_text()[-400:])
    if "url" in found:
        print(f"vLLM {found['vllm']}: its routes, its checks and its models of answers, without an engine")
        before_vllm(found["url"])

for process in processes:
    process.terminate()
for process in processes:
    process.wait(30)
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
