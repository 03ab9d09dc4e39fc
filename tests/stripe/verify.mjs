// Says what Stripe's official library thinks of a signed webhook body.
//
// Lines in:  {"payload": "…", "header": "t=…,v1=…", "secret": "whsec_…", "tolerance": 300}   (300, where it is left out)
// Lines out: ok, or err and the library's reason

import { Stripe, answerLines } from "./library.mjs";

const { webhooks } = new Stripe("sk_test_unused");

await answerLines(({ payload, header, secret, tolerance = 300 }) => {
  try {
    webhooks.constructEvent(payload, header, secret, tolerance);
    return "ok";
  } catch (error) {
    return `err ${error.message.split("\n")[0].trim()}`;
  }
});
