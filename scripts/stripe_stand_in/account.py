"""A Stripe account in memory: what is bought there, and the events that come of it."""

import json

from . import objects
from .objects import Refused, new_id, now, public


class Account:
    """Its methods are called one at a time; `made` are the events of the last one."""

    def __init__(self):
        self.customers, self.sessions, self.subscriptions, self.invoices, self.refunds = {}, {}, {}, {}, {}
        # by payment intent, of which each has one charge
        self.charges = {}
        self.disputes, self.prices, self.events, self.made = {}, {}, {}, []

    def emit(self, kind, thing, **previous):
        event = objects.event(kind, thing, previous)
        # As Stripe prints it. The signature is over these bytes.
        record = {"id": event["id"], "type": kind, "body": json.dumps(event, indent=2, ensure_ascii=False)}
        self.events[event["id"]] = record
        self.made.append(record)

    @staticmethod
    def find(kind, things, name, param, status=400):
        if not isinstance(name, str) or name not in things:
            raise Refused(status, f"No such {kind}: '{name}'", code="resource_missing", param=param)
        return things[name]

    # --- What Stripe's API does ----------------------------------------------------------------------------

    def create_customer(self, form, base=None):
        customer = objects.customer(form)
        self.customers[customer["id"]] = customer
        return customer

    def get_customer(self, name, form):
        return self.find("customer", self.customers, name, "id", 404)

    def create_session(self, form, base):
        if form.get("customer"):
            self.find("customer", self.customers, form["customer"], "customer")
        session = objects.session(form, base, self.prices)
        self.sessions[session["id"]] = session
        return self.expanded(session, form)

    def get_session(self, name, form):
        return self.expanded(self.find("checkout.session", self.sessions, name, "session", 404), form)

    @staticmethod
    def expanded(session, form):
        wanted = "line_items" in form.get("expand", [])
        return public(session) | ({"line_items": session["_line_items"]} if wanted else {})

    def create_portal(self, form, base):
        if not form.get("customer"):
            raise objects.missing("customer")
        self.find("customer", self.customers, form["customer"], "customer")
        return objects.portal_session(form, base)

    def list_invoice_payments(self, form):
        """By which payments invoices were paid, or are to be; the newest come first."""
        objects.known(form, "expand invoice limit payment status")
        payment = objects.mapping(form, "payment")
        objects.known(payment, "payment_intent type", "payment[{}]")
        if payment and payment.get("type") != "payment_intent":
            raise objects.invalid("payment[type]", "The stand-in knows no payments but a payment_intent's")
        wanted = [form.get("invoice"), form.get("status"), payment.get("payment_intent")]

        def fits(found):
            of = [found["invoice"], found["status"], found["payment"]["payment_intent"]]
            return all(given in (None, value) for given, value in zip(wanted, of))

        limit = objects.integer(form.get("limit", "10"), "limit")
        found = [*filter(fits, map(objects.invoice_payment, reversed(self.invoices.values())))]
        return objects.items_of("invoice_payments", found[:limit]) | {"has_more": len(found) > limit}

    def list_sessions(self, form):
        return self.listed("checkout/sessions", self.sessions, form, "customer payment_intent status subscription")

    def list_invoices(self, form):
        return self.listed("invoices", self.invoices, form, "collection_method customer status")

    def get_invoice(self, name, form):
        return self.find("invoice", self.invoices, name, "invoice", 404)

    def list_subscriptions(self, form):
        """All of every status but canceled, unless one is asked for."""
        among = form.get("status")
        ended = ("canceled", "incomplete_expired")

        def fits(subscription):
            status = subscription["status"]
            if among is None:
                return status != "canceled"
            return among == "all" or (status in ended if among == "ended" else status == among)

        return self.listed("subscriptions", self.subscriptions, form, "collection_method customer", "status", fits)

    def get_subscription(self, name, form):
        return self.find("subscription", self.subscriptions, name, "id", 404)

    def list_charges(self, form):
        charges = {charge["id"]: charge for charge in self.charges.values()}
        return self.listed("charges", charges, form, "customer payment_intent transfer_group")

    def get_charge(self, name, form):
        charges = {charge["id"]: charge for charge in self.charges.values()}
        return self.find("charge", charges, name, "charge", 404)

    def list_refunds(self, form):
        page = self.listed("refunds", self.refunds, form, "charge payment_intent", expandable="data.charge")
        if "data.charge" in form.get("expand", []):
            page["data"] = [refund | {"charge": self.get_charge(refund["charge"], {})} for refund in page["data"]]
        return page

    def list_disputes(self, form):
        return self.listed("disputes", self.disputes, form, "charge payment_intent")

    def list_events(self, form):
        types = form.get("types")
        if types is not None and (not isinstance(types, list) or len(types) > 20):
            raise objects.invalid("types", "At most 20 types of events can be asked for")
        events = {name: json.loads(record["body"]) for name, record in self.events.items()}
        return self.listed("events", events, form, "type", "types", lambda one: types is None or one["type"] in types)

    def listed(self, name, things, form, filters, further="", among=lambda one: True, expandable=""):
        """A page of those things that are `among` what is wanted, from the newest on: by the fields of `filters`,
        which they have themselves, and by `further` ones, which they have not."""
        objects.known(form, f"created expand limit starting_after {filters} {further}")
        for wanted in form.get("expand", []):
            if wanted not in expandable.split():
                raise objects.invalid("expand[]", f"This property cannot be expanded ({wanted}).")
        limit = objects.integer(form.get("limit", "10"), "limit")
        if not 1 <= limit <= 100:
            raise objects.invalid("limit", "limit is from 1 to 100")
        created = objects.mapping(form, "created") if not isinstance(form.get("created"), str) else {}
        objects.known(created, "gt gte lt lte", "created[{}]")
        edges = {edge: objects.integer(value, f"created[{edge}]") for edge, value in created.items()}
        wanted = {field: form[field] for field in filters.split() if field in form}

        def fits(thing):
            return among(thing) and all(thing.get(field) == value for field, value in wanted.items()) and all(
                {"gt": thing["created"] > edge, "gte": thing["created"] >= edge,
                 "lt": thing["created"] < edge, "lte": thing["created"] <= edge}[which]
                for which, edge in edges.items())

        after = form.get("starting_after")
        if after is not None:
            self.find(name, things, after, "starting_after")
        names = [*reversed(things)]
        rest = names[names.index(after) + 1:] if after is not None else names
        found = [public(things[one]) for one in rest if fits(things[one])]
        return objects.items_of(name, found[:limit]) | {"has_more": len(found) > limit}

    def get_dispute(self, name, form):
        return self.find("dispute", self.disputes, name, "dispute", 404)

    def age(self, seconds):
        """Everything was made so much earlier, and its events too."""
        for things in (self.customers, self.sessions, self.subscriptions, self.invoices, self.refunds, self.charges,
                       self.disputes):
            for thing in things.values():
                thing["created"] -= seconds
        for record in self.events.values():
            event = json.loads(record["body"])
            event["created"] -= seconds
            record["body"] = json.dumps(event, indent=2, ensure_ascii=False)

    # --- What customers, their banks and time do -------------------------------------------------------------

    def pay(self, name, later=None):
        """Pays a session. `later`, "true" or "fail", is a payment that takes days: the first call
        completes the session, the second one says how it ended."""
        session = self.find("checkout.session", self.sessions, name, "session", 404)
        waits = session["status"] == "complete" and session["payment_status"] == "unpaid"
        if session["status"] != "open" and not (waits and later):
            raise Refused(400, f"This session is {session['status']} and {session['payment_status']}")
        if not waits:
            self.complete(session)
        subscription = self.subscriptions.get(session["subscription"])
        if later and not waits:
            outcome = "completed"
        elif later == "fail":
            outcome = "async_payment_failed"
        else:
            outcome = "async_payment_succeeded" if waits else "completed"
            session["payment_status"] = "paid"
        self.emit(f"checkout.session.{outcome}", session)
        if subscription and not waits:
            self.emit("customer.subscription.created", subscription)
        if session["payment_status"] == "paid":
            if subscription:
                self.move(subscription, status="active")
                self.settle(self.invoices[session["invoice"]])
            else:
                self.charge(session["payment_intent"], session["amount_total"], session)
        elif subscription and waits:
            self.move(subscription, status="incomplete_expired", ended_at=now())
        return session

    def complete(self, session):
        """The customer has filled in the form."""
        email = session["customer_email"]
        if session["mode"] == "subscription":
            session["customer"] = session["customer"] or self.create_customer({"email": email})["id"]
            subscription = objects.subscription(session)
            self.subscriptions[subscription["id"]] = subscription
            invoice = self.bill(subscription, "subscription_create")
            session.update(subscription=subscription["id"], invoice=invoice["id"])
        else:
            session["payment_intent"] = new_id("pi")
        email = email or self.customers.get(session["customer"], {}).get("email")
        session.update(status="complete", url=None, customer_details=objects.customer_details(email))

    def charge(self, payment_intent, amount, sold):
        self.charges[payment_intent] = objects.charge(payment_intent, amount, sold)

    def bill(self, subscription, reason):
        invoice = objects.invoice(subscription, reason)
        self.invoices[invoice["id"]] = invoice
        subscription["latest_invoice"] = invoice["id"]
        return invoice

    def settle(self, invoice):
        self.charge(invoice["_payment_intent"], invoice["total"], invoice)
        objects.pay_invoice(invoice)
        self.emit("invoice.paid", invoice)

    def move(self, subscription, to="updated", **changes):
        previous = {key: subscription[key] for key in changes if subscription[key] != changes[key]}
        subscription.update(changes)
        self.emit(f"customer.subscription.{to}", subscription, **previous)

    def expire(self, name):
        session = self.find("checkout.session", self.sessions, name, "session", 404)
        if session["status"] != "open":
            raise Refused(400, f"Only an open session can expire; this one is {session['status']}")
        session.update(status="expired", url=None)
        self.emit("checkout.session.expired", session)
        return session

    def subscription(self, name, what, at_period_end=False):
        subscription = self.find("subscription", self.subscriptions, name, "id", 404)
        if what == "cancel" and at_period_end:
            end = subscription["items"]["data"][0]["current_period_end"]
            self.move(subscription, cancel_at_period_end=True, cancel_at=end, canceled_at=now())
        elif what == "cancel":
            self.move(subscription, "deleted", status="canceled", canceled_at=now(), ended_at=now())
        elif what == "renew":
            objects.next_period(subscription)
            invoice = self.bill(subscription, "subscription_cycle")
            self.move(subscription, status="active")
            self.settle(invoice)
        elif what == "fail_payment":
            objects.next_period(subscription)
            invoice = self.bill(subscription, "subscription_cycle")
            invoice.update(attempted=True, attempt_count=1, next_payment_attempt=now() + 3 * 86_400)
            self.emit("invoice.payment_failed", invoice)
            self.move(subscription, status="past_due")
        elif what == "pause":
            self.move(subscription, "paused", status="paused")
        else:
            self.move(subscription, "resumed", status="active")
        return subscription

    def charged(self, given):
        """The charge of a payment intent, or of an invoice's."""
        invoice = self.invoices.get(given.get("invoice"), {})
        payment_intent = invoice.get("_payment_intent", given.get("payment_intent"))
        return self.find("payment_intent", self.charges, payment_intent, "payment_intent")

    def refund(self, given):
        charge = self.charged(given)
        before = charge["amount_refunded"]
        rest = charge["amount"] - before
        amount = given.get("amount", rest)
        if not 0 < amount <= rest:
            raise Refused(400, f"{amount} can't be refunded of a charge with {rest} left", param="amount")
        charge.update(amount_refunded=before + amount, refunded=amount == rest)
        refund = objects.refund(charge, amount)
        self.refunds[refund["id"]] = refund
        self.emit("charge.refunded", charge, amount_refunded=before)
        return charge

    def dispute(self, given):
        if "close" not in given:
            charge = self.charged(given)
            dispute = objects.dispute(charge)
            self.disputes[dispute["id"]] = dispute
            charge["disputed"] = True
            self.emit("charge.dispute.created", dispute)
            return dispute
        if given["close"] not in ("won", "lost"):
            raise Refused(400, "close is won or lost", param="close")
        payment_intent = given.get("payment_intent")
        for dispute in reversed(self.disputes.values()):
            if dispute["status"] == "needs_response" and payment_intent in (None, dispute["payment_intent"]):
                dispute["status"] = given["close"]
                self.emit("charge.dispute.closed", dispute, status="needs_response")
                return dispute
        raise Refused(404, "There is no open dispute", code="resource_missing")
