"""The Lua scripts of `otel_kit.integrations.redis_leases`. Each gets all keys, in the order of `KEYS`.

live     sorted set   member -> when the lease, or the claim on it, runs out (milliseconds, the server's clock)
details  hash         member -> the lease as JSON
claims   hash         member -> who has claimed it; "requeueing" or "requeued" where a person has had it run again
lost     sorted set   member -> when it was declared lost
watch    hash         at: when somebody last looked for dead leases; since: from when on that was done without a gap
"""

from __future__ import annotations

from typing import Final

KEYS: Final = ("live", "details", "claims", "lost", "watch")

_HEAD: Final = """
local live, details, claims, lost, watch = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function fate(member)
  if not redis.call('ZSCORE', lost, member) then
    return redis.call('ZSCORE', live, member) and redis.call('HEXISTS', details, member) == 1 and 1 or 0
  end
  local state = redis.call('HGET', claims, member)
  return (state == 'requeued' or state == 'requeueing') and 3 or 2
end
local function keep(seconds)
  for i = 1, 5 do redis.call('EXPIRE', KEYS[i], seconds) end
end
"""

#: ttl, most leases, seconds that keys are kept; then members with their details. Gives a fate for each.
HOLD: Final = (
    _HEAD
    + """
local ttl, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local fates = {}
for i = 4, #ARGV, 2 do
  local member, text = ARGV[i], ARGV[i + 1]
  local known = fate(member)
  if known == 0 and text ~= '' and redis.call('ZCARD', live) < most then known = 1 end
  if known > 0 then
    redis.call('ZADD', live, now + ttl, member)
    if text ~= '' then redis.call('HSET', details, member, text) end
    if known > 1 then
      redis.call('ZREM', lost, member)
      redis.call('HDEL', claims, member)
    end
  end
  fates[#fates + 1] = known
end
keep(ARGV[3])
return fates
"""
)

#: Members. Gives the fate that each had.
RELEASE: Final = (
    _HEAD
    + """
local fates = {}
for i = 1, #ARGV do
  local member = ARGV[i]
  fates[i] = fate(member)
  redis.call('ZREM', live, member)
  redis.call('ZREM', lost, member)
  redis.call('HDEL', claims, member)
  redis.call('HDEL', details, member)
end
return fates
"""
)

#: ttl, how long a claim lasts, claimer, service, limit, how many are looked at, most lost ones, how long these are kept,
#: seconds that keys are kept. Gives members with their details.
CLAIM: Final = (
    _HEAD
    + """
local ttl, lasts, claimer, service = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local at = tonumber(redis.call('HGET', watch, 'at') or '')
local since = tonumber(redis.call('HGET', watch, 'since') or '')
if not at or not since or now < at or now - at > ttl / 2 then
  -- Nobody has looked for a while: the server was down or stopped, or its clock was set, and those who live have not been
  -- able to say so either. They get the time for it.
  since = now
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', live, now + 10 * lasts, '+inf', 'LIMIT', 0, 1000)) do
    redis.call('ZADD', live, now + ttl, member)
  end
end
redis.call('HSET', watch, 'at', now, 'since', since)
local old = redis.call('ZRANGEBYSCORE', lost, '-inf', now - ARGV[8], 'LIMIT', 0, 1000)
local excess = redis.call('ZCARD', lost) - tonumber(ARGV[7])
if excess > 0 then
  for _, member in ipairs(redis.call('ZRANGE', lost, 0, math.min(excess, 1000) - 1)) do old[#old + 1] = member end
end
for _, member in ipairs(old) do
  if not redis.call('ZSCORE', live, member) then
    redis.call('ZREM', lost, member)
    redis.call('HDEL', claims, member)
    redis.call('HDEL', details, member)
  end
end
keep(ARGV[9])
if now - since < ttl then return {} end
local found = {}
local dead = redis.call('ZRANGEBYSCORE', live, '-inf', now, 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[6]))
for i = 1, #dead, 2 do
  local member = dead[i]
  local tail = string.sub(member, -#service - 1)
  if tail == '\\31' .. service or now - dead[i + 1] > ttl / 2 then
    local text = redis.call('HGET', details, member)
    if text then
      redis.call('ZADD', live, now + lasts, member)
      redis.call('HSET', claims, member, claimer)
      redis.call('ZADD', lost, 'NX', now, member)
      found[#found + 1] = member
      found[#found + 1] = text
      if #found >= 2 * tonumber(ARGV[5]) then break end
    else
      redis.call('ZREM', live, member)
      redis.call('ZREM', lost, member)
      redis.call('HDEL', claims, member)
    end
  end
end
return found
"""
)

#: Claimer; then members.
SETTLE: Final = (
    _HEAD
    + """
for i = 2, #ARGV do
  if redis.call('HGET', claims, ARGV[i]) == ARGV[1] then
    redis.call('HDEL', claims, ARGV[i])
    redis.call('ZREM', live, ARGV[i])
  end
end
return {}
"""
)

#: How many. Gives member, details, milliseconds left; without those that are declared lost.
RUNNING: Final = (
    _HEAD
    + """
local found = {}
local all = redis.call('ZRANGE', live, 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
for i = 1, #all, 2 do
  local text = redis.call('HGET', details, all[i])
  if text and not redis.call('ZSCORE', lost, all[i]) then
    found[#found + 1] = all[i]
    found[#found + 1] = text
    found[#found + 1] = tostring(all[i + 1] - now)
  end
end
return found
"""
)

#: How many. Gives member, details, when and how long ago it was declared lost, who has it in hand.
LOST: Final = (
    _HEAD
    + """
local found = {}
local all = redis.call('ZREVRANGE', lost, 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
for i = 1, #all, 2 do
  local text = redis.call('HGET', details, all[i])
  if text then
    found[#found + 1] = all[i]
    found[#found + 1] = text
    found[#found + 1] = all[i + 1]
    found[#found + 1] = tostring(now - all[i + 1])
    found[#found + 1] = redis.call('HGET', claims, all[i]) or ''
  end
end
return found
"""
)

#: Member, what all members of its job begin with, "again" or nothing. Gives nothing, or why not.
BEGIN_RECOVERY: Final = (
    _HEAD
    + """
local member, job = ARGV[1], ARGV[2]
if not redis.call('ZSCORE', lost, member) then return {'it is not lost: its process has come back'} end
local state = redis.call('HGET', claims, member)
if state == 'requeued' then return {'it was requeued already'} end
if state == 'requeueing' and ARGV[3] ~= 'again' then return {'somebody else is requeueing it'} end
for _, other in ipairs(redis.call('ZRANGEBYSCORE', live, now, '+inf')) do
  if other ~= member and string.sub(other, 1, #job) == job and not redis.call('ZSCORE', lost, other) then
    return {'it runs again, in another process'}
  end
end
redis.call('ZREM', live, member)
redis.call('HSET', claims, member, 'requeueing')
return {}
"""
)

#: Member, and its state from now on.
END_RECOVERY: Final = (
    _HEAD
    + """
if redis.call('HGET', claims, ARGV[1]) == 'requeueing' then
  if ARGV[2] ~= '' then redis.call('HSET', claims, ARGV[1], ARGV[2]) else redis.call('HDEL', claims, ARGV[1]) end
end
return {}
"""
)
