#!/usr/bin/env python3
"""Holds requests against Stripe's OpenAPI description: what we send is what Stripe would take.

    check_requests.py [--spec FILE] [FILE]    FILE, or standard input: what was sent
    check_requests.py [--spec FILE] --self-test

What was sent is a JSON list of {"method","path","headers","body"}, where the body is the form as it
went over the wire; `GET /_/requests` of scripts/stripe-stand-in answers with such a list. The
description is $TEST_STRIPE_TOOLS/stripe.com.json, which scripts/test brings. Going by its fields it is
of early 2023, whatever date it bears, and it is in the newest version of that package. What Stripe added
later and we use is in LATER: whole paths, or further parameters of one, for as long as the description does
not have them.

Exits with 1 and a sentence for each problem, also where there was nothing to check.
"""

import argparse
import json
import os
import re
import sys
from urllib.parse import parse_qsl, quote, urlsplit

KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
FORMATS = {
    "decimal": re.compile(r"-?[0-9]+(\.[0-9]{1,12})?"),
    "currency": re.compile(r"[a-z]{3}"),
    "unix-time": re.compile(r"[0-9]{1,11}"),
}

# In the description's own terms, with the parameters that Stripe's library has in
# `InvoicePaymentListParams`; tests/stripe/stand_in.mjs holds what that library sends against it.
# https://docs.stripe.com/api/invoice-payment/list
CREATED = {"in": "query", "name": "created", "schema": {"anyOf": [
    {"type": "object", "properties": {edge: {"type": "integer"} for edge in ("gt", "gte", "lt", "lte")}},
    {"type": "integer"}]}}
LATER = {
    # https://docs.stripe.com/api/checkout/sessions/list, `SessionListParams`
    "/v1/checkout/sessions": {"get": {"parameters": [
        CREATED,
        {"in": "query", "name": "status", "schema": {"type": "string", "enum": ["complete", "expired", "open"]}},
    ]}},
    "/v1/invoice_payments": {"get": {"parameters": [
        CREATED,
        {"in": "query", "name": "ending_before", "schema": {"type": "string"}},
        {"in": "query", "name": "expand", "schema": {"type": "array", "items": {"type": "string", "maxLength": 5000}}},
        {"in": "query", "name": "invoice", "schema": {"type": "string"}},
        {"in": "query", "name": "limit", "schema": {"type": "integer"}},
        {"in": "query", "name": "payment", "schema": {"type": "object", "required": ["type"], "properties": {
            "payment_intent": {"type": "string"}, "payment_record": {"type": "string"},
            "type": {"type": "string", "enum": ["payment_intent", "payment_record"]}}}},
        {"in": "query", "name": "starting_after", "schema": {"type": "string"}},
        {"in": "query", "name": "status", "schema": {"type": "string", "enum": ["canceled", "open", "paid"]}},
    ]}},
}


class Form:
    """The fields of a form, nested as their brackets say: strings, and dictionaries of them."""

    def __init__(self, text):
        self.problems = []
        self.fields = {}
        try:
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict")
        except ValueError as error:
            self.problems.append(f"the form can't be read: {error}")
            pairs = []
        for key, value in pairs:
            parts = KEY.fullmatch(key)
            if not parts:
                self.problems.append(f"{key} has brackets that don't match")
                continue
            self.put([parts[1], *re.findall(r"\[([^\[\]]*)\]", parts[2])], key, value)

    def put(self, parts, key, value):
        place = self.fields
        for part in parts[:-1]:
            place = place.setdefault(part or str(len(place)), {})
            if isinstance(place, str):
                self.problems.append(f"{key} is given, and {part} as a value of its own too")
                return
        last = parts[-1] or str(len(place))
        if last in place:
            self.problems.append(f"{key} is given twice")
        place[last] = value


class Description:
    def __init__(self, file):
        with open(file, encoding="utf-8") as opened:
            self.spec = json.load(opened)
        for path, methods in LATER.items():
            for method, operation in methods.items():
                there = self.spec["paths"].setdefault(path, {}).setdefault(method, {"parameters": []})["parameters"]
                for parameter in operation["parameters"]:
                    if any(known["name"] == parameter["name"] for known in there):
                        sys.exit(f"check_requests.py: the description has {parameter['name']} of {path} itself: "
                                 "take it out of LATER")
                    there.append(parameter)

    def resolve(self, schema):
        while "$ref" in schema:
            place = self.spec
            for part in schema["$ref"].removeprefix("#/").split("/"):
                place = place[part]
            schema = place
        return schema

    def operation(self, method, path):
        """What is said of this method and path, and a sentence where nothing is."""
        for template, methods in self.spec["paths"].items():
            pattern = re.sub(r"\\\{[^{}/]+\\\}", "[^/]+", re.escape(template))
            if re.fullmatch(pattern, path):
                if method.lower() in methods:
                    return methods[method.lower()], None
                return None, f"{path} is there, but not with {method}"
        return None, f"there is no path {path}"

    def request(self, request):
        """A sentence for each problem of one request."""
        method, url = request["method"], urlsplit(request["path"])
        operation, problem = self.operation(method, url.path)
        if problem:
            return [problem]
        problems = list(headers(request, method)) if "headers" in request else []

        given = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
        query = {"type": "object", "properties": {parameter["name"]: parameter["schema"] for parameter in given}}
        query["required"] = [parameter["name"] for parameter in given if parameter.get("required")]
        problems += self.form(url.query, query)

        content = operation.get("requestBody", {}).get("content", {})
        body = content.get("application/x-www-form-urlencoded", {}).get("schema", {"type": "object"})
        return problems + self.form(request.get("body") or "", body)

    def form(self, text, schema):
        form = Form(text)
        return form.problems + list(self.check("", form.fields, schema))

    def check(self, name, value, schema):
        schema = self.resolve(schema)
        if "anyOf" in schema:
            attempts = [list(self.check(name, value, option)) for option in schema["anyOf"]]
            if all(attempts):
                # Those of the option that was meant: nested like what was given, and the nearest.
                nested = [isinstance(value, dict) == (self.resolve(option).get("type") in ("object", "array"))
                          for option in schema["anyOf"]]
                yield from min(zip(attempts, nested), key=lambda pair: (not pair[1], len(pair[0])))[0]
            return
        kind = schema.get("type")
        if kind in ("object", "array") and isinstance(value, str):
            yield f"{name} is {show(value)}, where an {kind} is expected"
        elif kind == "object":
            yield from self.check_object(name, value, schema)
        elif kind == "array":
            if list(value) != [str(index) for index in range(len(value))]:
                yield f"{name} is numbered {', '.join(value)}, where a list begins at 0 and leaves nothing out"
            for index, item in value.items():
                yield from self.check(f"{name}[{index}]", item, schema.get("items", {}))
        elif isinstance(value, dict):
            yield f"{name} has fields, where a {kind or 'value'} is expected"
        else:
            yield from check_value(name, value, kind, schema)

    def check_object(self, name, value, schema):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
        for field, inner in value.items():
            full = f"{name}[{field}]" if name else field
            if field in known:
                yield from self.check(full, inner, known[field])
            elif isinstance(others, dict):
                yield from self.check(full, inner, others)
            elif not others:
                yield f"{full} is not a field that Stripe knows"
        for field in schema.get("required", []):
            if field not in value:
                yield f"{name}[{field}] is missing" if name else f"{field} is missing"


def check_value(name, value, kind, schema):
    if kind == "integer" and not (INTEGER.fullmatch(value) and -(2**63) <= int(value) < 2**63):
        yield f"{name} is {show(value)}, which is no integer"
    elif kind == "number" and not FORMATS["decimal"].fullmatch(value):
        yield f"{name} is {show(value)}, which is no number"
    elif kind == "boolean" and value not in ("true", "false"):
        yield f"{name} is {show(value)}, neither true nor false"
    elif "enum" in schema and value not in [str(option) for option in schema["enum"]]:
        yield f"{name} is {show(value)}, not one of {', '.join(map(str, schema['enum'])) or 'nothing'}"
    elif len(value) > schema.get("maxLength", len(value)):
        yield f"{name} has {len(value)} characters, where {schema['maxLength']} are allowed"
    elif schema.get("format") in FORMATS and not FORMATS[schema["format"]].fullmatch(value):
        yield f"{name} is {show(value)}, which is no {schema['format']}"
    elif "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{name} is {show(value)}, which does not match {schema['pattern']}"


def headers(request, method):
    """What Stripe's documentation asks of every request, and the description leaves out."""
    pairs = request["headers"]
    sent = {key.lower(): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}
    if not sent.get("authorization", "").startswith("Bearer "):
        yield "there is no Authorization: Bearer"
    if method == "POST":
        if not sent.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            yield f"the content type is {sent.get('content-type')}, not a form's"
        if not 1 <= len(sent.get("idempotency-key", "")) <= 255:
            yield "there is no Idempotency-Key of 1 to 255 characters"


def show(value):
    return json.dumps(value if len(value) <= 60 else value[:60] + "…", ensure_ascii=False)


def check_all(description, requests):
    if not isinstance(requests, list) or not requests:
        return ["there is no request to check"]
    problems = []
    for number, request in enumerate(requests, 1):
        for problem in description.request(request):
            problems.append(f"request {number}, {request['method']} {request['path']}: {problem}")
    return problems


def self_test(description):
    """It has to find what is wrong, or its silence says nothing."""
    good = {
        "mode": "subscription", "client_reference_id": "p_1", "customer": "cus_1", "success_url": "https://a.example/",
        "line_items[0][quantity]": "1", "line_items[0][price_data][currency]": "usd",
        "line_items[0][price_data][unit_amount]": "1000", "line_items[0][price_data][product_data][name]": "Pro",
        "line_items[0][price_data][recurring][interval]": "month", "metadata[any]": "thing", "expand[0]": "line_items",
    }
    cases = [
        ({}, None),
        ({"expand[0]": None, "expand[]": "line_items"}, None),
        ({"success_url": None}, "success_url is missing"),
        ({"sucess_url": "https://a.example/"}, "sucess_url is not a field"),
        ({"mode": "subscribe"}, 'mode is "subscribe", not one of payment'),
        ({"client_reference_id": "x" * 201}, "client_reference_id has 201 characters"),
        ({"expires_at": "tomorrow"}, 'expires_at is "tomorrow", which is no integer'),
        ({"allow_promotion_codes": "1"}, "neither true nor false"),
        ({"metadata": "thing"}, "metadata is given twice"),
        ({"mode[a]": "payment"}, "mode[a] is given, and mode as a value"),
        ({"metadata[a][b]": "c"}, "metadata[a] has fields"),
        ({"mode": None, "mode[a]": "payment"}, "mode has fields"),
        ({"expand[0]": None, "expand[1]": "line_items"}, "a list begins at 0"),
        ({"line_items[0][price_data][unit_amount]": "9.99"}, "unit_amount] is \"9.99\", which is no integer"),
        ({"line_items[0][price_data][unit_amount_decimal]": "9,99"}, "which is no decimal"),
        ({"line_items[0][price_data][product_data][name]": None,
          "line_items[0][price_data][product_data][title]": "Pro"}, "[product_data][name] is missing"),
        ({"line_items[0][price_data][recurring][interval]": "monthly"}, "not one of day, month, week, year"),
        ({"line_items[0][price_data][recurring][every]": "month"}, "[recurring][every] is not a field"),
        ({"line_items[0[quantity]": "1"}, "brackets that don't match"),
    ]
    failures = []

    def expect(what, request, needle):
        problems = description.request(request)
        if needle is None and problems:
            failures.append(f"{what}: nothing is wrong, but it says: {problems}")
        if needle is not None and not any(needle in problem for problem in problems):
            failures.append(f"{what}: it should say {needle!r}, but says: {problems}")

    sent = {"Authorization": "Bearer sk_test_1", "Idempotency-Key": "1",
            "Content-Type": "application/x-www-form-urlencoded"}
    for change, needle in cases:
        fields = {key: value for key, value in {**good, **change}.items() if value is not None}
        body = "&".join(f"{quote(key)}={quote(value)}" for key, value in fields.items())
        request = {"method": "POST", "path": "/v1/checkout/sessions", "headers": sent, "body": body}
        expect(str(change), request, needle)
    payments = "/v1/invoice_payments?"
    asked = {"method": "GET", "path": payments, "body": ""}
    customer = {"method": "POST", "path": "/v1/customers", "headers": sent, "body": "email=a%40b.example"}
    for change, needle in [
        ({}, None),
        ({"path": "/v1/customer"}, "there is no path /v1/customer"),
        ({"method": "PUT"}, "not with PUT"),
        ({"body": "email=a&email=b"}, "email is given twice"),
        ({"body": "email=%ff"}, "can't be read"),
        ({"headers": {**sent, "Authorization": "Basic x"}}, "no Authorization: Bearer"),
        ({"headers": {**sent, "Content-Type": "application/json"}}, "content type is application/json"),
        ({"headers": {key: sent[key] for key in sent if key != "Idempotency-Key"}}, "no Idempotency-Key"),
        ({"method": "GET", "path": "/v1/checkout/sessions/cs_1?expand[]=line_items", "body": ""}, None),
        ({"method": "GET", "path": "/v1/checkout/sessions/cs_1?expend[]=line_items", "body": ""},
         "expend is not a field"),
        ({"method": "GET", "path": "/v1/customers/cus_1", "body": "email=a"}, "email is not a field"),
        ({**asked, "path": f"{payments}payment[type]=payment_intent&payment[payment_intent]=pi_1"}, None),
        ({**asked, "path": f"{payments}payment%5Btype%5D=payment_intent&limit=1"}, None),
        ({**asked, "path": f"{payments}payment[payment_intent]=pi_1"}, "payment[type] is missing"),
        ({**asked, "path": f"{payments}payment[type]=charge"}, 'payment[type] is "charge", not one of'),
        ({**asked, "path": f"{payments}payment[type]=payment_intent&payment[intent]=pi_1"},
         "payment[intent] is not a field"),
        ({**asked, "path": f"{payments}payment=pi_1"}, "an object is expected"),
        ({**asked, "path": f"{payments}payment_intent=pi_1"}, "payment_intent is not a field"),
        ({**asked, "method": "POST"}, "not with POST"),
        ({**asked, "path": "/v1/checkout/sessions?limit=100&created[gte]=1&status=complete"}, None),
        ({**asked, "path": "/v1/checkout/sessions?status=paid"}, 'status is "paid", not one of'),
        ({**asked, "path": "/v1/refunds?limit=100&created[gte]=1&expand[0]=data.charge"}, None),
        ({**asked, "path": "/v1/refunds?created[since]=1"}, "created[since] is not a field"),
        ({**asked, "path": "/v1/events?types[0]=invoice.paid&starting_after=evt_1"}, None),
    ]:
        expect(str(change), {**customer, **change}, needle)
    if check_all(description, []) != ["there is no request to check"]:
        failures.append("an empty list passes")
    return failures


def main():
    parser = argparse.ArgumentParser(description="Holds requests against Stripe's OpenAPI description.")
    tools = os.environ.get("TEST_STRIPE_TOOLS")
    parser.add_argument("--spec", default=tools and os.path.join(tools, "stripe.com.json"))
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("file", nargs="?")
    arguments = parser.parse_args()
    if not arguments.spec:
        sys.exit("check_requests.py: run it beside `scripts/test --services`, or name Stripe's description by --spec")
    description = Description(arguments.spec)
    if arguments.self_test:
        problems, done = self_test(description), "the checker finds what is wrong, and nothing else"
    else:
        with open(arguments.file, encoding="utf-8") if arguments.file else sys.stdin as opened:
            requests = json.load(opened)
        problems = check_all(description, requests)
        done = f"{len(requests)} requests are as Stripe's description wants them"
    print("\n".join(problems) or done)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
