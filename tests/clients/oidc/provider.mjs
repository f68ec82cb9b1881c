// An OpenID provider: npm's oidc-provider with one client and any user, who logs in by its own development pages.
//
//     provider.mjs PORT SOCKET REDIRECT-URI POST-LOGOUT-URI ACCESS-TOKEN-SECONDS [BACK-CHANNEL-URI]
//
// It serves the loopback's port and a Unix socket, which browsers of other network namespaces reach.
//
// GET /test/revoke ends every grant, so that no refresh succeeds; GET /test/refreshes says how many did.
import { rmSync } from 'node:fs';

import { Provider } from 'oidc-provider';

const [port, socket, redirect, after, seconds, back] = process.argv.slice(2);
let refreshes = 0;
let revoked = false;

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: 'edge',
      client_secret: 'a-secret-of-the-edge+with/odd=letters',
      redirect_uris: [redirect],
      post_logout_redirect_uris: [after],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      ...(back && { backchannel_logout_uri: back, backchannel_logout_session_required: true }),
    },
  ],
  claims: { openid: ['sub'], email: ['email'] },
  conformIdTokenClaims: false,
  cookies: { keys: ['of-a-test'] },
  features: { backchannelLogout: { enabled: Boolean(back) } },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id, email: `${id}@shop.example` }) }),
  issueRefreshToken: async () => true,
  ttl: { AccessToken: Number(seconds), IdToken: 600, RefreshToken: 3600, Grant: 3600, Session: 3600, Interaction: 600, AuthorizationCode: 60 },
});

provider.on('grant.success', (context) => {
  if (context.oidc.params.grant_type === 'refresh_token') refreshes += 1;
});

provider.on('backchannel.error', (context, error) => console.error(`back channel: ${error.message} ${error.cause ?? ''}`));

provider.use(async (context, next) => {
  if (context.path === '/test/revoke') revoked = true;
  if (context.path === '/test/refreshes' || context.path === '/test/revoke') {
    context.body = String(refreshes);
    return;
  }
  if (revoked && context.path === '/token') {
    context.status = 400;
    context.body = { error: 'invalid_grant' };
    return;
  }
  await next();
});

// Nobody reads what it says once it is ready.
process.stdout.on('error', () => {});

rmSync(socket, { force: true });
provider.listen(Number(port), '127.0.0.1', () => provider.listen(socket, () => console.log('ready')));
