// Result<T>: a value or an Error; what every module interface returns instead of throwing.
#pragma once

#include <boost/assert/source_location.hpp>
#include <boost/system/result.hpp>

#include "base/error.hpp"

namespace cairn {

template <class T>
using Result = boost::system::result<T, Error>;

// Called by result::value() on an error: that is a bug of the caller, hence an exception.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& where);

}  // namespace cairn
