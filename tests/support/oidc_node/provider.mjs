// An OpenID provider over TLS on a port that the kernel chose. It is told what to be as JSON on
// standard input, says its port on standard output, and ends with its input.
import https from "node:https";
import net from "node:net";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.NODE_PATH}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")).href);
const lines = createInterface({ input: process.stdin });
const first = await new Promise((resolve) => lines.once("line", resolve));
const asked = JSON.parse(first);

// The issuer holds the port, so the port is known first.
const port = asked.port || (await new Promise((resolve) => {
  const probe = net.createServer().listen(0, "127.0.0.1", () => {
    const chosen = probe.address().port;
    probe.close(() => resolve(chosen));
  });
}));
const issuer = `https://localhost:${port}`;
const people = asked.people;
const provider = new Provider(issuer, {
  clients: asked.clients,
  jwks: asked.jwks,
  cookies: { keys: ["a key of a test"] },
  claims: { openid: ["sub", "amr"], profile: ["preferred_username", "groups"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true, methods: ["S256"] },
  features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: false } },
  findAccount: (_ctx, id) => (people[id] ? { accountId: id, claims: () => ({ sub: id, ...people[id] }) } : undefined),
});
// How somebody logged in stands in the session, not among the claims.
const finished = provider.interactionFinished.bind(provider);
provider.interactionFinished = (req, res, result, options) => {
  const amr = people[result.login?.accountId]?.amr;
  if (amr) result.login.amr = amr;
  return finished(req, res, result, options);
};
provider.on("server_error", (_ctx, error) => console.error(error));
https.createServer({ key: asked.key, cert: asked.cert }, provider.callback()).listen(port, "127.0.0.1", () => {
  console.log(JSON.stringify({ issuer, port }));
});
lines.on("close", () => process.exit(0));
