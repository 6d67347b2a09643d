-- Written by prefect-dstack. The models of all services at one address: which there are, and where they are when
-- the beginning of a request does not tell.

-- Bytes of bodies that are read whole, as their model is not found at once: of one, and of all of one thread.
local LONGEST_BODY, ROOM = 16 * 1024 * 1024, 128 * 1024 * 1024
local PIECE = 16384
local LONGEST_NAME = 512
local HOP = {
  ["connection"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["upgrade"] = true,
  ["transfer-encoding"] = true, ["expect"] = true, ["x-gateway-listener"] = true, ["x-dstack-model"] = true,
  ["x-gateway-leave"] = true,
}

local tokens, limits = Map.new("tokens.map", Map._str), Map.new("body-limits.map", Map._str)
local models, by_id = {}, {}
for line in io.lines("models.map") do
  local id, backend, created, access = line:match("^(%S+) ([^;]+);(%d+);(%a+)$")
  by_id[id] = {
    id = id, backend = backend, service = backend:gsub("^service:", ""), created = created,
    open = access == "open",
  }
  models[#models + 1] = by_id[id]
end

-- What requests that are read now hold; those that ended without a word are gone with their next collection.
local reading = setmetatable({}, {__mode = "k"})

local function held()
  local total = 0
  for request in pairs(reading) do
    total = total + request.size
  end
  return total
end

local function accepted(service, digest)
  local ends = digest and tonumber(tokens:lookup(service .. "/" .. digest))
  return ends ~= nil and core.now().sec < ends
end

local function shown(model, digest)
  return model.open or accepted(model.service, digest) or accepted("*", digest)
end

local function json(text)
  return '"' .. text:gsub('[%c"\\]', function(character)
    return ("\\u%04x"):format(character:byte())
  end) .. '"'
end

local function described(model)
  return ('{"id": %s, "object": "model", "created": %s, "owned_by": %s}'):format(
    json(model.id), model.created, json(model.service)
  )
end

local function answer(applet, status, body)
  applet:set_status(status)
  applet:add_header("content-type", "application/json")
  applet:add_header("content-length", #body)
  applet:add_header("cache-control", "no-cache")
  if status == 401 then
    applet:add_header("www-authenticate", "Bearer")
  elseif status == 503 then
    applet:add_header("retry-after", "5")
  end
  applet:start_response()
  if applet.method ~= "HEAD" then
    applet:send(body)
  end
end

local function refuse(applet, status, kind, code, message)
  answer(applet, status, ('{"error": {"message": %s, "type": "%s", "code": %s}}'):format(
    json(message), kind, code and json(code) or status
  ))
end

local function refuse_unknown(applet, name, digest)
  name = name:gsub("[^%w._/:@+-]", "?"):sub(1, LONGEST_NAME)
  local known = accepted("*", digest)
  for _, model in ipairs(models) do
    known = known or accepted(model.service, digest)
  end
  for _, model in ipairs(models) do
    -- Who has no token is told the same of models that there are and of those that there are not.
    if not model.open and not known then
      return refuse(applet, 401, "unauthorized", nil, "A valid token is needed.")
    end
  end
  refuse(applet, 404, "invalid_request_error", "model_not_found",
    ("The model '%s' does not exist, or you have no access to it."):format(name))
end

local function list(applet, name, digest)
  if applet.method ~= "GET" and applet.method ~= "HEAD" then
    return refuse(applet, 405, "method_not_allowed", nil, "This method is not allowed.")
  end
  if name ~= "" then
    local model = by_id[name]
    if model and shown(model, digest) then
      return answer(applet, 200, described(model))
    end
    return refuse_unknown(applet, name, digest)
  end
  local found = {}
  for _, model in ipairs(models) do
    if shown(model, digest) then
      found[#found + 1] = described(model)
    end
  end
  answer(applet, 200, '{"object": "list", "data": [' .. table.concat(found, ", ") .. "]}")
end

local function unescaped(text)
  text = text:gsub("\\u(%x%x%x%x)", function(digits)
    return utf8.char(tonumber(digits, 16))
  end)
  return (text:gsub("\\(.)", "%1"))
end

-- Counts the backslashes at the end; of a text of nothing else, also those of the text before.
local function backslashes(text, last, before)
  local index = last
  while index > 0 and text:byte(index) == 92 do
    index = index - 1
  end
  return last - index + (index == 0 and before or 0)
end

-- Reads an object that comes in pieces: returns its member `model` once that has come, and whether it has ended.
local function reader()
  local depth, quoted, before, text, last, key = 0, false, 0, "", nil, nil
  return function(piece)
    local at, from = 1, 1
    while at <= #piece do
      if quoted then
        local stop = piece:find('"', at, true)
        if not stop then
          break
        end
        at = stop + 1
        if backslashes(piece, stop - 1, before) % 2 == 0 then
          quoted = false
          if depth == 1 then
            last = unescaped(text .. piece:sub(from, stop - 1))
            if key == "model" then
              return last, true
            end
          end
        end
      else
        local stop, _, sign = piece:find(depth == 1 and '(["{}%[%]:,])' or '(["{}%[%]])', at)
        if not stop then
          break
        end
        at = stop + 1
        if sign == '"' then
          quoted, text, from = true, "", at
        elseif sign == "{" or sign == "[" then
          if depth == 0 and sign == "[" then
            return nil, true
          end
          depth = depth + 1
        elseif sign == "}" or sign == "]" then
          depth = depth - 1
          if depth <= 0 then
            return nil, true
          end
        else
          key = sign == ":" and last or nil
        end
      end
    end
    if quoted then
      before = backslashes(piece, #piece, before)
      if depth == 1 and #text < LONGEST_NAME then
        text = text .. piece:sub(from, from + LONGEST_NAME)
      end
    end
    return nil, false
  end
end

local function first(values)
  return values and values[0]
end

-- The head of the request, as another frontend is to get it.
local function head(applet, model)
  local source, destination = applet.f:src(), applet.f:dst()
  local kind = source and destination and (source:find(":", 1, true) and "TCP6" or "TCP4")
  local lines = {
    kind and ("PROXY %s %s %s %d %d"):format(
      kind, source, destination, applet.f:src_port(), applet.f:dst_port()
    ) or "PROXY UNKNOWN",
    ("%s %s HTTP/1.1"):format(applet.method, applet:get_var("txn.target")),
    "connection: close",
    -- A refusal comes before there is a body that nobody reads, which would break the connection.
    "x-gateway-leave: asked",
    "x-gateway-listener: " .. applet:get_var("txn.listener"),
    "x-dstack-model: " .. model.id,
  }
  for name, values in pairs(applet.headers) do
    if not HOP[name] then
      for index = 0, #values do
        lines[#lines + 1] = name .. ": " .. values[index]
      end
    end
  end
  if not applet.headers["content-length"] then
    lines[#lines + 1] = "transfer-encoding: chunked"
  end
  return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

-- Sends the body. A service that answers before it has all may want no more.
local function send(server, request, whole)
  for _, piece in ipairs(request.pieces) do
    local sent = server:send(whole and piece or ("%x\r\n%s\r\n"):format(#piece, piece))
    if not sent or sent < 0 then
      break
    end
  end
  if not whole then
    server:send("0\r\n\r\n")
  end
  request.pieces, request.size = nil, 0
end

-- Reads the head of the answer; calls `go_on` when there is leave to send the body.
local function read_head(server, go_on)
  local status, headers
  repeat
    local line = server:receive("*l")
    status, headers = line and tonumber(line:match("^HTTP/1%.[01] (%d%d%d)")), {}
    if not status then
      return nil
    end
    line = server:receive("*l")
    while line and line ~= "" do
      local name, value = line:match("^([^:]+):%s*(.-)%s*$")
      name = name:lower()
      headers[#headers + 1] = {name, value}
      if status < 200 and name == "x-gateway-leave" then
        go_on()
      end
      line = server:receive("*l")
    end
  until status >= 200
  return status, headers
end

local function needed(value)
  return value or error("the connection to the service has ended early")
end

local function receive(applet, server, go_on)
  local status, headers = read_head(server, go_on)
  if not status then
    return refuse(applet, 502, "bad_gateway", nil, "The service did not answer properly.")
  end
  local length, chunked
  applet:set_status(status)
  for _, header in ipairs(headers) do
    local name, value = header[1], header[2]
    if name == "transfer-encoding" then
      chunked = true
    elseif name == "content-length" then
      length = tonumber(value)
    end
    if not HOP[name] then
      applet:add_header(name, value)
    end
  end
  applet:start_response()
  if chunked then
    -- The pieces are those in which the service sends them: a stream is not held up.
    local size = tonumber(needed(server:receive("*l")):match("^%x+"), 16)
    while size > 0 do
      applet:send(needed(server:receive(size)))
      needed(server:receive("*l"))
      size = tonumber(needed(server:receive("*l")):match("^%x+"), 16)
    end
  elseif length then
    while length > 0 do
      local piece = needed(server:receive(math.min(length, PIECE)))
      applet:send(piece)
      length = length - #piece
    end
  else
    -- It ends with its connection.
    local piece, _, rest
    repeat
      piece, _, rest = server:receive(PIECE)
      applet:send(piece or rest or "")
    until not piece
  end
end

local function pass_on(applet, model, request)
  local server = core.tcp()
  server:settimeout(86400)
  if not server:connect("unix@successor.sock") then
    return refuse(applet, 502, "bad_gateway", nil, "The service did not answer properly.")
  end
  server:send(head(applet, model))
  receive(applet, server, function()
    -- It is sent beside this, since the answer may begin before all is taken.
    core.register_task(send, server, request, applet.headers["content-length"] ~= nil)
  end)
  server:close()
end

local function find(applet, digest)
  local may_ask = false
  for _, model in ipairs(models) do
    may_ask = may_ask or shown(model, digest)
  end
  if not may_ask then
    return refuse(applet, 401, "unauthorized", nil, "A valid token is needed.")
  end
  local request, read = {size = 0, pieces = {}}, reader()
  reading[request] = true
  local name, ended
  local piece = applet:receive(PIECE)
  while piece and #piece > 0 do
    request.pieces[#request.pieces + 1] = piece
    request.size = request.size + #piece
    if request.size > LONGEST_BODY then
      return refuse(applet, 413, "content_too_large", nil,
        "The body is too large for a model that is named late: name it before the messages, or in the header "
          .. "X-Dstack-Model.")
    elseif held() > ROOM then
      collectgarbage()
      if held() > ROOM then
        return refuse(applet, 503, "unavailable", nil,
          "Too many large requests at once; those that name their model in the header X-Dstack-Model have room.")
      end
    end
    if not ended then
      name, ended = read(piece)
    end
    piece = applet:receive(PIECE)
  end
  if not name then
    return refuse(applet, 400, "invalid_request_error", "model_required",
      "Which model is asked? Name it as 'model' in a body of JSON, or in the header X-Dstack-Model.")
  end
  local model = by_id[name]
  if not model then
    return refuse_unknown(applet, name, digest)
  end
  local limit, size = tonumber(limits:lookup(model.backend)), tonumber(first(applet.headers["content-length"]))
  if not shown(model, digest) then
    return refuse(applet, 401, "unauthorized", nil, "A valid token is needed.")
  elseif limit and (size or request.size) > limit then
    return refuse(applet, 413, "content_too_large", nil, "The request body is too large.")
  end
  pass_on(applet, model, request)
end

core.register_service("models", "http", function(applet)
  local digest, path = applet:get_var("txn.digest"), applet:get_var("txn.path")
  local name = path:match("^/v1/models(.*)$") or path:match("^/models(.*)$")
  if name and (name == "" or name:sub(1, 1) == "/") then
    name = name:sub(2):gsub("%%(%x%x)", function(digits)
      return string.char(tonumber(digits, 16))
    end)
    return list(applet, name, digest)
  end
  name = applet:get_var("txn.model")
  if name and first(applet.headers["x-dstack-model"]) == name then
    return refuse_unknown(applet, name, digest)
  end
  find(applet, digest)
end)
