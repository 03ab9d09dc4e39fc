"""What Stripe's objects look like, in its API of August 2026: whole enough for its official libraries.

A field whose name begins with `_` is the stand-in's own and is never shown.
"""

import calendar
import json
import re
import secrets
import string
import time
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from urllib.parse import urlsplit

API_VERSION = "2026-08-26.dahlia"


class Refused(Exception):
    """An answer that is an error, in Stripe's shape."""

    def __init__(self, status, message, kind=None, **more):
        super().__init__(message)
        self.status = status
        self.error = {"type": kind or ("api_error" if status >= 500 else "invalid_request_error"),
                      "message": message, **more}

    def body(self):
        return {"error": self.error}


def invalid(param, message, code="parameter_invalid"):
    return Refused(400, message, code=code, param=param)


def missing(param):
    return invalid(param, f"Missing required param: {param}.", "parameter_missing")


def new_id(prefix):
    alphabet = string.ascii_letters + string.digits
    return f"{prefix}_{''.join(secrets.choice(alphabet) for _ in range(24))}"


def now():
    return int(time.time())


def nulls(names):
    return dict.fromkeys(names.split())


def public(thing):
    return {key: value for key, value in thing.items() if not key.startswith("_")} if isinstance(thing, dict) else thing


def items_of(name, data):
    return {"object": "list", "data": data, "has_more": False, "url": f"/v1/{name}"}


def event(kind, thing, previous):
    data = {"object": public(thing)}
    if previous:
        data["previous_attributes"] = previous
    return json.loads(json.dumps({
        "id": new_id("evt"), "object": "event", "api_version": API_VERSION, "created": now(), "data": data,
        "livemode": False, "pending_webhooks": 1, "request": nulls("id idempotency_key"), "type": kind,
    }))


# --- What a request may say ----------------------------------------------------------------------------


def known(form, names, full="{}"):
    for name in form:
        if name not in names.split():
            raise invalid(full.format(name), f"Received unknown parameter: {full.format(name)}", "parameter_unknown")


def text(form, param, most=5000):
    value = form.get(param)
    if value is not None and not isinstance(value, str):
        raise invalid(param, f"Invalid string: {param}")
    if value is not None and len(value) > most:
        raise invalid(param, f"{param} may have at most {most} characters", "parameter_invalid_string_length")
    return value or None


def integer(value, param):
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise invalid(param, f"Invalid integer: {value}", "parameter_invalid_integer")
    return int(value)


def address(form, param):
    url = text(form, param)
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
        raise invalid(param, "Not a valid URL", "url_invalid")
    return url


def mapping(form, param, full=None):
    value = form.get(param) or {}
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        raise invalid(full or param, f"Invalid object: {full or param}")
    return value


def metadata(form, full="metadata"):
    pairs = mapping(form, "metadata", full)
    for key, value in pairs.items():
        if not isinstance(value, str) or len(value) > 500 or len(key) > 40:
            raise invalid(f"{full}[{key}]", "Metadata has keys of at most 40 and texts of at most 500 characters")
    if len(pairs) > 50:
        raise invalid(full, "Metadata has at most 50 keys")
    return pairs


# --- Customers, sessions, prices -------------------------------------------------------------------------


def customer(form):
    email = text(form, "email", 512)
    if email and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", email):
        raise invalid("email", f"Invalid email address: {email}", "email_invalid")
    return {
        "id": new_id("cus"), "object": "customer", "balance": 0, "created": now(), "delinquent": False,
        "description": text(form, "description"), "email": email, "invoice_prefix": secrets.token_hex(4).upper(),
        "invoice_settings": nulls("custom_fields default_payment_method footer rendering_options"),
        "livemode": False, "metadata": metadata(form), "name": text(form, "name", 256), "next_invoice_sequence": 1,
        "phone": text(form, "phone", 20), "preferred_locales": [], "tax_exempt": "none",
        **nulls("address currency default_source discount shipping test_clock"),
    }


def price(given, product=None):
    interval = given.get("interval")
    return {
        "id": given.get("id") or new_id("price"), "object": "price", "active": True, "billing_scheme": "per_unit",
        "created": now(), "currency": given["currency"], "livemode": False, "metadata": {},
        "product": product or new_id("prod"), "type": "recurring" if interval else "one_time",
        "recurring": interval and {"interval": interval, "interval_count": given.get("interval_count", 1),
                                   "usage_type": "licensed", **nulls("meter trial_period_days")},
        "tax_behavior": "unspecified", "unit_amount": given["unit_amount"],
        "unit_amount_decimal": str(given["unit_amount"]),
        **nulls("custom_unit_amount lookup_key nickname tiers_mode transform_quantity"),
    }


def price_stated(data, full):
    """The price that a request states itself."""
    currency = text(data, "currency")
    if not currency:
        raise missing(f"{full}[currency]")
    if not re.fullmatch(r"[a-z]{3}", currency.lower()):
        raise invalid(f"{full}[currency]", f"Invalid currency: {currency}")
    if "product" not in data and not text(mapping(data, "product_data"), "name"):
        raise missing(f"{full}[product_data][name]")
    if "unit_amount" in data:
        amount = integer(data["unit_amount"], f"{full}[unit_amount]")
    else:
        try:
            amount = int(Decimal(data["unit_amount_decimal"]).to_integral_value())
        except KeyError:
            raise missing(f"{full}[unit_amount]") from None
        except (InvalidOperation, TypeError, ValueError):
            raise invalid(f"{full}[unit_amount_decimal]", "Invalid decimal") from None
    if amount < 0:
        raise invalid(f"{full}[unit_amount]", "This value must be greater than or equal to 0.")
    recurring = mapping(data, "recurring", f"{full}[recurring]")
    if recurring and recurring.get("interval") not in ("day", "week", "month", "year"):
        raise invalid(f"{full}[recurring][interval]", "Invalid interval: must be one of day, week, month, or year")
    count = integer(recurring.get("interval_count", "1"), f"{full}[recurring][interval_count]")
    return price({"currency": currency.lower(), "unit_amount": amount, "interval": recurring.get("interval"),
                  "interval_count": count}, text(data, "product"))


def line_items(form, mode, prices):
    given = form.get("line_items")
    if not given:
        raise missing("line_items")
    if not isinstance(given, list):
        raise invalid("line_items", "Invalid array")
    lines = []
    for index, line in enumerate(given):
        full = f"line_items[{index}]"
        line = mapping({"line": line}, "line", full)
        if ("price" in line) == ("price_data" in line):
            raise invalid(full, "A line has either a price or price_data")
        if "price" in line and line["price"] not in prices:
            raise invalid(f"{full}[price]", f"No such price: '{line['price']}'", "resource_missing")
        sold = prices[line["price"]] if "price" in line else price_stated(
            mapping(line, "price_data", f"{full}[price_data]"), f"{full}[price_data]")
        if mode == "payment" and sold["recurring"]:
            raise invalid(full, "A recurring price can't be sold in `payment` mode; use `subscription` mode")
        if "quantity" not in line:
            raise missing(f"{full}[quantity]")
        quantity = integer(line["quantity"], f"{full}[quantity]")
        if quantity < 1:
            raise invalid(f"{full}[quantity]", "This value must be greater than or equal to 1.")
        total = sold["unit_amount"] * quantity
        name = mapping(mapping(line, "price_data"), "product_data").get("name", sold["id"])
        lines.append({"id": new_id("li"), "object": "item", "amount_discount": 0, "amount_subtotal": total,
                      "amount_tax": 0, "amount_total": total, "currency": sold["currency"], "description": name,
                      "price": sold, "quantity": quantity})
    if mode == "subscription" and not any(line["price"]["recurring"] for line in lines):
        raise invalid("line_items", "You must provide at least one recurring price in `subscription` mode")
    if len({line["currency"] for line in lines}) > 1:
        raise invalid("line_items", "All prices of a session must be in the same currency")
    return lines


def session(form, base, prices):
    mode = text(form, "mode")
    if mode not in ("payment", "subscription"):
        raise invalid("mode", f"Invalid mode: {mode}") if mode else missing("mode")
    for other, field in (("payment", "subscription_data"), ("subscription", "payment_intent_data"),
                         ("subscription", "invoice_creation"), ("subscription", "customer_creation")):
        if mode == other and field in form:
            raise invalid(field, f"You can not pass `{field}` in `{mode}` mode.")
    if "customer" in form and "customer_email" in form:
        raise invalid("customer", "You may only specify one of these parameters: customer, customer_email.")
    success_url = address(form, "success_url")
    if not success_url:
        raise missing("success_url")
    lines = line_items(form, mode, prices)
    total = sum(line["amount_total"] for line in lines)
    if total < 50 and (total or mode == "payment"):
        raise invalid("line_items", "The session's total must be at least 50 cents", "amount_too_small")
    if total > 99_999_999:
        raise invalid("line_items", "The session's total must be at most 99999999 cents", "amount_too_large")
    expires_at = integer(form.get("expires_at", str(now() + 86_400)), "expires_at")
    if not now() + 1_740 <= expires_at <= now() + 86_460:
        raise invalid("expires_at", "A session expires between 30 minutes and 24 hours from now")
    name = new_id("cs_test")
    given = mapping(form, "subscription_data" if mode == "subscription" else "payment_intent_data")
    return {
        "id": name, "object": "checkout.session", "adaptive_pricing": {"enabled": False},
        "amount_subtotal": total, "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "cancel_url": address(form, "cancel_url"), "client_reference_id": text(form, "client_reference_id", 200),
        "collected_information": None, "created": now(), "currency": lines[0]["currency"], "custom_fields": [],
        "custom_text": nulls("after_submit shipping_address submit terms_of_service_acceptance"),
        "customer": text(form, "customer"), "customer_creation": "if_required" if mode == "payment" else "always",
        "customer_email": text(form, "customer_email"), "discounts": [], "expires_at": expires_at,
        "invoice_creation": None if mode == "subscription" else {"enabled": False, "invoice_data": {
            "metadata": {}, **nulls("account_tax_ids custom_fields description footer issuer rendering_options")}},
        "livemode": False, "metadata": metadata(form), "mode": mode,
        "payment_method_collection": "always" if mode == "subscription" else "if_required",
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": ["card"], "payment_status": "unpaid", "phone_number_collection": {"enabled": False},
        "shipping_options": [], "status": "open", "success_url": success_url,
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0}, "ui_mode": "hosted_page",
        "url": f"{base}/c/pay/{name}",
        **nulls("after_expiration allow_promotion_codes billing_address_collection client_secret consent"
                " consent_collection currency_conversion customer_account customer_details"
                " integration_identifier invoice locale managed_payments origin_context payment_intent"
                " payment_link payment_method_configuration_details permissions recovered_from"
                " saved_payment_method_options setup_intent shipping_address_collection shipping_cost"
                " submit_type subscription wallet_options"),
        "_line_items": items_of(f"checkout/sessions/{name}/line_items", lines),
        "_metadata": metadata(given, "subscription_data[metadata]"),
    }


def customer_details(email):
    country = {"country": "US", **nulls("city line1 line2 postal_code state")}
    return {"address": country, "email": email, "tax_exempt": "none", "tax_ids": [],
            **nulls("business_name individual_name name phone")}


def portal_session(form, base):
    name = new_id("bps")
    return {
        "id": name, "object": "billing_portal.session", "configuration": "bpc_standin", "created": now(),
        "customer": text(form, "customer"), "livemode": False, "return_url": address(form, "return_url"),
        "url": f"{base}/p/session/{text(form, 'customer')}", **nulls("customer_account flow locale on_behalf_of"),
    }


# --- Subscriptions and what they cost ----------------------------------------------------------------------


def period_end(start, recurring):
    count = recurring["interval_count"]
    if recurring["interval"] in ("day", "week"):
        return start + count * (7 if recurring["interval"] == "week" else 1) * 86_400
    moment = datetime.fromtimestamp(start, timezone.utc)
    months = moment.month - 1 + count * (12 if recurring["interval"] == "year" else 1)
    year, month = moment.year + months // 12, months % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return int(moment.replace(year=year, month=month, day=day).timestamp())


def subscription(paid_session):
    name, start = new_id("sub"), now()
    line = next(line for line in paid_session["_line_items"]["data"] if line["price"]["recurring"])
    item = {
        "id": new_id("si"), "object": "subscription_item", "billing_thresholds": None, "created": start,
        "current_period_end": period_end(start, line["price"]["recurring"]), "current_period_start": start,
        "discounts": [], "metadata": {}, "price": line["price"], "quantity": line["quantity"],
        "subscription": name, "tax_rates": [],
    }
    return {
        "id": name, "object": "subscription",
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": start, "billing_mode": {"flexible": None, "type": "classic"},
        "cancel_at_period_end": False, "cancellation_details": nulls("comment feedback feedback_option reason"),
        "collection_method": "charge_automatically", "created": start, "currency": paid_session["currency"],
        "customer": paid_session["customer"],
        "default_tax_rates": [], "discounts": [],
        "invoice_settings": {"issuer": {"type": "self"}, **nulls("account_tax_ids custom_fields description footer")},
        "items": items_of(f"subscription_items?subscription={name}", [item]), "livemode": False,
        "metadata": paid_session["_metadata"],
        "payment_settings": {"save_default_payment_method": "off",
                             **nulls("payment_method_options payment_method_types")},
        "start_date": start, "status": "incomplete",
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        **nulls("application application_fee_percent billing_cycle_anchor_config billing_thresholds cancel_at"
                " canceled_at days_until_due default_payment_method default_source description ended_at"
                " latest_invoice next_pending_invoice_item_invoice on_behalf_of pause_collection"
                " pending_invoice_item_interval pending_setup_intent pending_update schedule test_clock"
                " transfer_data trial_end trial_start"),
    }


def next_period(renewed):
    item = renewed["items"]["data"][0]
    item["current_period_start"] = item["current_period_end"]
    item["current_period_end"] = period_end(item["current_period_start"], item["price"]["recurring"])


def invoice(billed, reason):
    name, item = new_id("in"), billed["items"]["data"][0]
    total = item["price"]["unit_amount"] * item["quantity"]
    line = {
        "id": new_id("il"), "object": "line_item", "amount": total, "currency": billed["currency"],
        "description": f"{item['quantity']} × {item['price']['id']}", "discount_amounts": [], "discountable": True,
        "discounts": [], "invoice": name, "livemode": False, "metadata": billed["metadata"],
        "parent": {"type": "subscription_item_details", "invoice_item_details": None, "subscription_item_details": {
            "invoice_item": None, "proration": False, "proration_details": {"credited_items": None},
            "subscription": billed["id"], "subscription_item": item["id"]}},
        "period": {"start": item["current_period_start"], "end": item["current_period_end"]},
        "pretax_credit_amounts": [], "pricing": {"type": "price_details", "price_details": {
            "price": item["price"]["id"], "product": item["price"]["product"]},
            "unit_amount_decimal": item["price"]["unit_amount_decimal"]},
        "quantity": item["quantity"], "subtotal": total, "taxes": [],
    }
    return {
        "id": name, "object": "invoice", "amount_due": total, "amount_overpaid": 0, "amount_paid": 0,
        "amount_remaining": total, "amount_shipping": 0, "attempt_count": 0, "attempted": False, "auto_advance": False,
        "automatic_tax": {"enabled": False, **nulls("disabled_reason liability provider status")},
        "billing_reason": reason, "collection_method": "charge_automatically", "created": now(),
        "currency": billed["currency"], "customer": billed["customer"], "customer_tax_exempt": "none",
        "customer_tax_ids": [], "default_tax_rates": [], "discounts": [], "effective_at": now(), "ending_balance": 0,
        "issuer": {"type": "self"}, "lines": items_of(f"invoices/{name}/lines", [line]), "livemode": False,
        "metadata": {}, "number": f"STANDIN-{secrets.randbelow(10_000):04}",
        "parent": {"type": "subscription_details", "quote_details": None, "subscription_details": {
            "metadata": billed["metadata"], "subscription": billed["id"]}},
        "payment_settings": nulls("default_mandate payment_method_options payment_method_types"),
        "period_end": now(), "period_start": now(), "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0, "starting_balance": 0, "status": "open",
        "status_transitions": {"finalized_at": now(), **nulls("marked_uncollectible_at paid_at voided_at")},
        "subtotal": total, "subtotal_excluding_tax": total, "total": total, "total_discount_amounts": [],
        "total_excluding_tax": total, "total_pretax_credit_amounts": [], "total_taxes": [],
        "webhooks_delivered_at": now(),
        **nulls("account_country account_name account_tax_ids application custom_fields customer_address"
                " customer_email customer_name customer_phone customer_shipping default_payment_method"
                " default_source description due_date footer from_invoice hosted_invoice_url invoice_pdf"
                " last_finalization_error latest_revision next_payment_attempt on_behalf_of receipt_number"
                " rendering shipping_cost shipping_details statement_descriptor test_clock"),
        "_payment": new_id("inpay"), "_payment_intent": new_id("pi"),
    }


def pay_invoice(paid):
    paid.update(status="paid", amount_paid=paid["total"], amount_remaining=0, attempted=True,
                attempt_count=paid["attempt_count"] + 1)
    paid["status_transitions"]["paid_at"] = now()


def invoice_payment(paid):
    """By which payment intent an invoice was paid, which its charge does not say."""
    settled = paid["status"] == "paid"
    return {
        "id": paid["_payment"], "object": "invoice_payment", "amount_paid": paid["total"] if settled else None,
        "amount_requested": paid["total"], "created": paid["created"], "currency": paid["currency"],
        "invoice": paid["id"], "is_default": True, "livemode": False,
        "payment": {"type": "payment_intent", "payment_intent": paid["_payment_intent"]},
        "status": "paid" if settled else "open",
        "status_transitions": {"canceled_at": None, "paid_at": paid["status_transitions"]["paid_at"]},
    }


def charge(payment_intent, amount, sold):
    """Of a session or an invoice; the metadata is what a session gave to its payment."""
    name = new_id("ch")
    return {
        "id": name, "object": "charge", "amount": amount, "amount_captured": amount, "amount_refunded": 0,
        "balance_transaction": new_id("txn"),
        "billing_details": {"address": nulls("city country line1 line2 postal_code state"),
                            **nulls("email name phone tax_id")},
        "calculated_statement_descriptor": "STAND-IN", "captured": True, "created": now(),
        "currency": sold["currency"], "customer": sold["customer"], "disputed": False, "fraud_details": {},
        "livemode": False, "metadata": sold.get("_metadata", {}),
        "outcome": {"network_status": "approved_by_network", "risk_level": "normal", "type": "authorized",
                    "seller_message": "Payment complete.", "reason": None,
                    **nulls("advice_code network_advice_code network_decline_code")},
        "paid": True, "payment_intent": payment_intent, "payment_method": new_id("pm"),
        "payment_method_details": {"type": "card", "card": {"brand": "visa", "last4": "4242"}}, "refunded": False,
        "status": "succeeded", "receipt_url": None,
        **nulls("application application_fee application_fee_amount description failure_balance_transaction"
                " failure_code failure_message on_behalf_of receipt_email receipt_number review shipping"
                " source_transfer statement_descriptor statement_descriptor_suffix transfer_data transfer_group"),
    }


def dispute(disputed):
    return {
        "id": new_id("du"), "object": "dispute", "amount": disputed["amount"] - disputed["amount_refunded"],
        "balance_transactions": [], "charge": disputed["id"], "created": now(), "currency": disputed["currency"],
        "enhanced_eligibility_types": [], "evidence": {}, "is_charge_refundable": False, "livemode": False,
        "evidence_details": {"due_by": now() + 7 * 86_400, "enhanced_eligibility": {}, "has_evidence": False,
                             "past_due": False, "submission_count": 0},
        "metadata": {}, "payment_intent": disputed["payment_intent"], "reason": "fraudulent",
        "status": "needs_response",
    }


def refund(charge, amount):
    return {
        "id": new_id("re"), "object": "refund", "amount": amount, "balance_transaction": new_id("txn"),
        "charge": charge["id"], "created": now(), "currency": charge["currency"],
        "destination_details": {"card": {"type": "refund", **nulls("reference reference_status reference_type")},
                                "type": "card"},
        "metadata": {}, "payment_intent": charge["payment_intent"], "reason": "requested_by_customer",
        "status": "succeeded", **nulls("receipt_number source_transfer_reversal transfer_reversal"),
    }
