package org.example.store

import scala.collection.mutable.{Map, Set => S}
import java.util._

/** Keeps items. */
class Store[T](val path: String) extends Base(path) with Keeper[T] {
  private val items = Map.empty[String, T]
  var size: Int = 0
  type Item = T

  // Keeps one.
  override def keep(item: T): Boolean = {
    val local = helper(item)
    def inner(x: Int) = x + 1
    items.put(item.toString, item).isEmpty
  }
}

trait Keeper[T] { def keep(item: T): Boolean }
object Store { def apply(path: String): Store[Int] = new Store[Int](path) }
case class Point(x: Int, y: Int)
