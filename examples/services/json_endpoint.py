"""A JSON endpoint: a plain function whose parameters are those of the request.

`python json_endpoint.py` deploys it and asks it once; `apothic serve json_endpoint.py` deploys it again on each change.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass

import apothic

app = apothic.App("orders")
PRICES = {"tea": 2.5, "bread": 3.0}


@dataclass
class Order:
    item: str
    amount: int = 1


@app.endpoint(method="POST", path="/orders/{customer}")
def place(customer: str, order: Order, currency: str = "EUR") -> dict[str, object] | apothic.Response:
    """Take `customer` from the path, `currency` from the query, and the order from the JSON body."""
    if order.item not in PRICES:
        return apothic.Response({"error": f"there is no {order.item}"}, status_code=404)
    return {"customer": customer, "total": PRICES[order.item] * order.amount, "currency": currency}


def main() -> None:
    """Deploy it, and place an order."""
    body = json.dumps({"item": "tea", "amount": 4}).encode()
    request = urllib.request.Request(
        place.get_web_url() + "orders/ada?currency=SEK", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        print(answer.status, answer.read().decode())


if __name__ == "__main__":
    main()
