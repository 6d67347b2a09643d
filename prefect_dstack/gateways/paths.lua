-- Written by prefect-dstack. Readings of a path, for those that hold more than plain names between slashes.

-- The equivalences of RFC 3986: unreserved characters are decoded, the rest of the encoding is in upper case.
local function normal(segment)
  return (segment:gsub("%%(%x%x)", function(digits)
    local character = string.char(tonumber(digits, 16))
    return character:match("[%w._~-]") and character or "%" .. digits:upper()
  end))
end

-- Some applications ignore what follows a semicolon, even behind dots.
local function name(segment)
  return (normal(segment):gsub(";.*", ""))
end

-- The segments as they were spelled, without dots and what two dots take back.
local function resolved(path)
  local segments, last = {}, ""
  for segment in path:sub(2):gmatch("[^/]*") do
    last = name(segment)
    if last == ".." then
      table.remove(segments)
    elseif last ~= "." then
      segments[#segments + 1] = segment
    end
  end
  if last == "." or last == ".." then
    segments[#segments + 1] = ""
  end
  return segments
end

core.register_converters("resolved_path", function(path)
  return "/" .. table.concat(resolved(path), "/")
end)

-- The one spelling that all spellings of a path have in common.
core.register_converters("plain_path", function(path)
  local names = resolved(path)
  for index, segment in ipairs(names) do
    names[index] = name(segment)
  end
  return (("/" .. table.concat(names, "/")):gsub("//+", "/"))
end)

-- What follows the first so many names, with the slashes between taken for one.
core.register_converters("path_below", function(path, count)
  local segments, index, depth = resolved(path), 0, tonumber(count)
  while index < #segments and (depth > 0 or segments[index + 1] == "") do
    index = index + 1
    if name(segments[index]) ~= "" then
      depth = depth - 1
    end
  end
  return "/" .. table.concat(segments, "/", index + 1)
end)
