"""check.py URL: pays for one response with the published Python client; the payer's key comes by standard input."""

import sys

from eth_account import Account
from x402 import x402ClientSync
from x402.http.clients.requests import x402_requests
from x402.mechanisms.evm.exact import ExactEvmScheme

client = x402ClientSync()
# The token is ours, so its payer says that it may be spent.
client.set_spend_controls({"allowed_assets": True})
client.register("eip155:*", ExactEvmScheme(Account.from_key(sys.stdin.read().strip())))
with x402_requests(client) as session:
    answer = session.post(sys.argv[1], json={"prompt": "code"}, timeout=60)
print(answer.status_code, answer.text)
sys.exit(0 if answer.status_code == 200 else 1)
